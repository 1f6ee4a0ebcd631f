# SPDX-License-Identifier: Apache-2.0
"""Where pages have the tokens of a block, and which pages blocks fill."""

from __future__ import annotations

import types

import pytest
import torch

from pyvattn import ConfigError
from pyvattn.integrations.vllm.layout import BlockShape, choose_paging, read_shape

SPEC = types.SimpleNamespace(num_kv_heads=2, head_size=8, head_size_v=8, block_size=16)
# As vLLM 0.26 has FlashAttention's: [blocks, heads, tokens, K and V], tokens first in memory.
NHD = BlockShape((1, 2, 16, 16), (0, 2, 1, 3), block_dim=0, token_dim=2)
HND = BlockShape((1, 2, 16, 16), (0, 1, 2, 3), block_dim=0, token_dim=2)


def tensors(shape, by_token, layers=3, blocks=4):
    """Each layer's view of the same pages."""
    elements = layers * 2 * 16 * 16
    pages = torch.zeros(blocks * elements)
    views = []
    for layer in range(layers):
        one, strides, offset = shape.view(layer, layers, by_token)
        sizes = [blocks if dim == shape.block_dim else one[dim] for dim in range(len(one))]
        views.append(torch.as_strided(pages, sizes, strides, offset))
    return pages.view(blocks, elements), views


@pytest.mark.parametrize("shape", [NHD, HND])
@pytest.mark.parametrize("by_token", [True, False])
def test_each_block_fills_its_page_and_no_other(shape, by_token):
    pages, views = tensors(shape, by_token)
    for layer, view in enumerate(views):
        assert not view.any(), "layers overlap"
        view[2].fill_(layer + 1)
    assert pages[2].all()
    assert not pages[[0, 1, 3]].any()


def test_tokens_of_a_row_have_one_stride_where_layers_lie_between_them():
    _, views = tensors(NHD, by_token=True)
    view = views[1]
    assert view.stride(0) == 16 * view.stride(2)
    assert NHD.takes_tokens_apart("FLASH_ATTN")
    assert not NHD.takes_tokens_apart("CPU_ATTN")
    assert not HND.takes_tokens_apart("FLASH_ATTN")


def test_otherwise_a_layer_of_a_block_is_as_vllm_has_it():
    _, views = tensors(HND, by_token=False)
    assert views[1][2].is_contiguous()


def test_the_shape_is_read_from_the_backend_of_old_releases():
    class Backend:
        @staticmethod
        def get_kv_cache_shape(blocks, tokens, heads, size, cache_dtype_str):
            assert cache_dtype_str == "auto"
            return (2, blocks, tokens, heads, size)

        @staticmethod
        def get_kv_cache_stride_order():
            raise NotImplementedError

    shape = read_shape(Backend, SPEC, types.SimpleNamespace(cache_dtype="auto"))
    assert shape == BlockShape((2, 1, 16, 2, 8), (0, 1, 2, 3, 4), block_dim=1, token_dim=2)
    _, views = tensors(shape, by_token=True)
    assert views[0].stride(0) == 2 * 8  # K and V of a token lie side by side


def test_the_shape_is_read_from_the_config_of_new_releases():
    layout = types.SimpleNamespace(layer_view_order=(0, 2, 1, 3))
    cache = types.SimpleNamespace(get_resolved_kv_cache_layout=lambda: layout)
    assert read_shape(None, SPEC, cache) == NHD


def test_the_largest_pages_that_blocks_fill_are_taken():
    sizes = [64 << 10, 2 << 20]
    # Llama-3-8B: 4 KiB a token and layer.
    paging = choose_paging(sizes, layers=32, token_bytes=4096, block_size=16)
    assert (paging.page_size, paging.layers_per_arena) == (2 << 20, 32)
    paging = choose_paging(sizes, layers=32, token_bytes=4096, block_size=128)
    assert (paging.page_size, paging.layers_per_arena) == (2 << 20, 4)
    paging = choose_paging(sizes, layers=32, token_bytes=4096, block_size=16, in_parts=False)
    assert (paging.page_size, paging.layers_per_arena) == (2 << 20, 32)
    # Pages of one layer each, where no page takes all.
    paging = choose_paging([2 << 20], layers=32, token_bytes=4096, block_size=512, in_parts=False)
    assert (paging.page_size, paging.layers_per_arena) == (2 << 20, 1)


def test_blocks_that_fill_no_page_name_those_that_would():
    with pytest.raises(ConfigError, match=r"blocks of 16 tokens.*use --block-size 32 or 64"):
        choose_paging([2 << 20], layers=32, token_bytes=2048, block_size=16)
    with pytest.raises(ConfigError, match=r"blocks of 128 tokens.*use --block-size 16 or 512"):
        choose_paging([2 << 20], layers=32, token_bytes=4096, block_size=128, in_parts=False)
    with pytest.raises(ConfigError, match="no block size does"):
        choose_paging([2 << 20], layers=3, token_bytes=3 * 1024, block_size=16)
