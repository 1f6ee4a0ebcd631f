# SPDX-License-Identifier: Apache-2.0
"""Rows of a cache as blocks of a paged kernel: the same tokens, and no tile of one unbacked."""

# ruff: noqa: E402
from __future__ import annotations

import sys
from types import ModuleType

import pytest

torch = pytest.importorskip("torch")

from pyvattn import CacheSpec, KVCache
from pyvattn.attention import Problem, flash_attn3_build, optional, row_table
from pyvattn.attention.flash_attn3_paged import FlashAttention3PagedKernel, whole_tokens_of
from pyvattn.attention.problem import page_bytes_of
from pyvattn.attention.registry import choose
from pyvattn.attention.row_table import RowTable
from pyvattn.errors import UnsupportedError

# The tiles of FlashAttention-3 on Hopper, by hopper/tile_size.h.
TILES = (64, 80, 96, 112, 128, 144, 160, 176, 192, 224)


def open_rows(kv_heads, head_dim, layout, page_size, max_tokens, slots=3, guard=0):
    spec = CacheSpec(2, kv_heads, head_dim, "float32", slots, max_tokens, guard_tokens=guard)
    return KVCache(
        spec, device="cpu", driver="host", page_size=page_size, layout=layout, memory="64MiB"
    )


def problem_of(cache, queries, layer=1):
    k, v = cache.layer(layer)
    heads, dim = 4 * k.shape[2], k.shape[3]
    q = torch.zeros(1, queries, heads, dim)
    return Problem(q, k, v, [0], [queries], True, 1.0, page_bytes=page_bytes_of(cache))


@pytest.mark.parametrize(
    ("kv_heads", "head_dim", "layout", "page_size", "max_tokens", "slots"),
    [
        (2, 64, "layer", "64K", 300, 3),
        (2, 64, "token", "64K", 300, 3),
        (2, 64, "layer", "2M", 1000, 2),
        (64, 256, "layer", "64K", 5, 3),  # a token fills a page
        (3, 40, "layer", "64K", 150, 3),  # no whole number of tokens in a page, nor in a row
        (3, 40, "token", "64K", 150, 3),
        (2, 64, "layer", "64K", 300, 1),
    ],
)
@pytest.mark.parametrize("queries", [1, 100])
def test_every_block_of_the_table_is_the_next_of_its_row(
    kv_heads, head_dim, layout, page_size, max_tokens, slots, queries
):
    with open_rows(kv_heads, head_dim, layout, page_size, max_tokens, slots) as cache:
        held = [cache.admit(max_tokens) for _ in range(slots)]
        for layer in range(2):
            for tensor in cache.layer(layer):
                tensor.copy_(torch.randn(tensor.shape))
        problem = problem_of(cache, queries)
        cut = RowTable.of(problem.k, whole_tokens_of(problem))
        table = cut.table(problem.k.device)
        assert table.shape == (slots, cut.per_row)
        for rows in (problem.k, problem.v):
            blocks = cut.view(rows)
            assert blocks.data_ptr() == rows.data_ptr()
            assert torch.equal(blocks[table].flatten(1, 2)[:, :max_tokens], rows)
        for slot in held:
            cache.release(slot)


def test_blocks_are_as_large_as_rows_allow():
    with open_rows(2, 64, "layer", "128K", 1024) as cache:  # 256 tokens in a page
        few, many = problem_of(cache, 1), problem_of(cache, 100)
        assert RowTable.of(few.k, whole_tokens_of(few)).tokens == 256
        assert RowTable.of(many.k, whole_tokens_of(many)).tokens == 256
    with open_rows(4, 128, "layer", "64K", 1024) as cache:  # 32 tokens in a page
        few, many = problem_of(cache, 1), problem_of(cache, 100)
        assert RowTable.of(few.k, whole_tokens_of(few)).tokens == 256
        assert RowTable.of(many.k, whole_tokens_of(many)).tokens == 32


@pytest.mark.parametrize("layout", ["layer", "token"])
@pytest.mark.parametrize("page_size", ["64K", "128K", "256K", "2M"])
@pytest.mark.parametrize("head_dim", [40, 64, 96, 128, 256, 512])
@pytest.mark.parametrize("known", [True, False])
def test_a_tile_of_many_queries_lies_in_one_page(layout, page_size, head_dim, known):
    """With TMA, which blocks of whole tiles take, a tile is read to its end."""
    with open_rows(2, head_dim, layout, page_size, 5000, slots=2) as cache:
        problem = problem_of(cache, 100)
        if not known:
            problem = Problem(problem.q, problem.k, problem.v, [0], [100], True, 1.0)
        cut = RowTable.of(problem.k, whole_tokens_of(problem))
        by_tma = any(cut.tokens % tile == 0 for tile in TILES)
        token_bytes = cache.geometry.token_bytes
        assert not by_tma or (known and cache.page_size % (cut.tokens * token_bytes) == 0)


def test_blocks_end_where_the_memory_of_a_plain_tensor_does():
    rows = torch.randn(3, 300, 2, 64)
    cut = RowTable.of(rows, None)
    assert cut.tokens == 4
    assert torch.equal(cut.view(rows).view(rows.shape), rows)


def test_the_table_is_made_once():
    rows = torch.randn(3, 320, 2, 64)
    first = RowTable.of(rows, None).table(rows.device)
    assert RowTable.of(rows.clone(), None).table(rows.device) is first


def test_a_graph_reads_the_table_that_is_there_and_keeps_one_of_its_own_to_itself(monkeypatch):
    """Filling one in every replay costs each layer five kernels."""
    rows = torch.randn(3, 704, 2, 64)
    cut = RowTable.of(rows, None)
    monkeypatch.setattr(row_table, "_is_capturing", lambda device: True)
    own = cut.table(rows.device)
    assert cut.table(rows.device) is not own
    monkeypatch.undo()
    there = cut.table(rows.device)
    assert torch.equal(there, own)
    monkeypatch.setattr(row_table, "_is_capturing", lambda device: True)
    assert cut.table(rows.device) is there


@pytest.fixture
def hopper(monkeypatch):
    """FlashAttention-3 on Hopper, of a build made without what the test says."""
    for name in ("flash_attn_interface", "flash_attn_config"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(optional, "why_no_device", lambda *_: None)
    monkeypatch.setattr("pyvattn.attention.flash_kvcache.why_not_flash", lambda *_: None)

    def without(*names):
        flags = {f"FLASHATTENTION_DISABLE_{name}": True for name in names}
        sys.modules["flash_attn_config"].CONFIG = {"build_flags": flags}
        flash_attn3_build.left_out.cache_clear()
        optional.why_not_importable.cache_clear()

    without()
    yield without
    flash_attn3_build.left_out.cache_clear()
    optional.why_not_importable.cache_clear()


@pytest.mark.usefixtures("hopper")
def test_a_cache_without_a_guard_gets_the_table_and_one_with_it_none():
    with open_rows(2, 64, "layer", "64K", 300) as cache:
        problem = problem_of(cache, 1)
        assert choose("auto", problem, 192).name == "flash-attn-3"
        assert choose("auto", problem, 0).name == "flash-attn-3-paged"
        assert choose("flash-attn-3-paged", problem, 0).name == "flash-attn-3-paged"


def test_a_build_without_page_tables_says_so_and_keeps_the_rest(hopper):
    hopper("PAGEDKV")
    assert "FLASH_ATTENTION_DISABLE_PAGEDKV" in FlashAttention3PagedKernel().unavailable()
    with open_rows(2, 64, "layer", "64K", 300) as cache:
        problem = problem_of(cache, 1)
        with pytest.raises(UnsupportedError, match=r"flash-attn-3-paged.*without page tables"):
            choose("flash-attn-3-paged", problem, 0)
        assert choose("auto", problem, 192).name == "flash-attn-3"
