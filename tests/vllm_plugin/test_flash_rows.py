# SPDX-License-Identifier: Apache-2.0
"""FlashAttention-3 without a block table: what real vLLM's classes give a kernel that stands in."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("vllm")

from vllm.v1.attention.backends import flash_attn

from pyvattn import UnsupportedError
from pyvattn.integrations.vllm import flash_rows
from pyvattn.integrations.vllm.flash_rows import (
    FlashRowAttention,
    FlashRowBackend,
    FlashRowBuilder,
)

ROWS, TOKENS, HEADS, DIM = 4, 64, 2, 16
LAYER = SimpleNamespace(_q_scale=torch.ones(1), _k_scale=torch.ones(1), _v_scale=torch.ones(1))


def kernel(*given):
    """The operator by its places: q, k, v, …, out, query starts, …, lengths, …, table, rows, …"""
    (q, k, v, _, _, _, out, starts, _, _, _, lengths, _, most_k, table, rows) = given[:16]
    scale, causal, left, right = given[23:27]
    assert most_k is None
    if table is not None:
        k, v = (cache[table].flatten(1, 2) for cache in (k, v))
    assert causal
    assert (left, right) == (-1, -1)
    for i, row in enumerate(rows.tolist()):
        first, end = starts[i], starts[i + 1]
        queries, length = end - first, lengths[i]
        keys, values = (cache[row, :length].repeat_interleave(2, dim=1) for cache in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q[first:end].float(), keys.float()) * scale
        ahead = torch.ones(queries, length, dtype=torch.bool).triu(length - queries + 1)
        weights = scores.masked_fill(ahead, -torch.inf).softmax(-1)
        out[first:end] = torch.einsum("hqk,khd->qhd", weights, values.float())


def write(key, value, k, v, slots, dtype, k_scale, v_scale):
    """vLLM's writing kernel: a slot is a block and a token of it."""
    for i, slot in enumerate(slots.tolist()):
        if slot >= 0:
            k[slot // k.shape[1], slot % k.shape[1]] = key[i]
            v[slot // k.shape[1], slot % k.shape[1]] = value[i]


@pytest.fixture
def layer(monkeypatch):
    monkeypatch.setattr(flash_attn, "get_flash_attn_version", lambda **_: 3)
    monkeypatch.setattr(torch.ops, "_vllm_fa3_C", SimpleNamespace(fwd=kernel), raising=False)
    monkeypatch.setattr(flash_rows, "reshape_and_cache_flash", write)
    return FlashRowAttention(2 * HEADS, DIM, DIM**-0.5, HEADS, None, None, "auto")


def metadata(counts, lengths, rows, table_block=None):
    starts = torch.tensor([0, *counts]).cumsum(0, dtype=torch.int32)
    return SimpleNamespace(
        num_actual_tokens=sum(counts),
        query_start_loc=starts,
        seq_lens=torch.tensor(lengths, dtype=torch.int32),
        max_query_len=max(counts),
        rows=torch.tensor(rows, dtype=torch.int32),
        sliding_window=(-1, -1),
        causal=True,
        scheduler_metadata=None,
        max_num_splits=0,
        table_block=table_block,
    )


def test_each_request_reads_its_own_row_and_what_the_step_wrote_there(layer):
    torch.manual_seed(0)
    cache = torch.randn(ROWS, TOKENS, 2, HEADS, DIM)
    before = cache.clone()
    counts, lengths, rows = [3, 1], [20, 33], [2, 1]
    query = torch.randn(5, 2 * HEADS, DIM)  # one more than is used: padding
    key, value = torch.randn(2, 5, HEADS, DIM)
    slots = torch.tensor([2 * TOKENS + 17, 2 * TOKENS + 18, 2 * TOKENS + 19, TOKENS + 32, -1])
    layer.do_kv_cache_update(LAYER, key, value, cache, slots)
    assert torch.equal(cache[2, 17:20, 0], key[:3])
    assert torch.equal(cache[1, 32, 1], value[3])
    assert torch.equal(cache[2, :17], before[2, :17])
    assert torch.equal(cache[3], before[3])

    out = layer.forward(
        LAYER, query, key, value, cache, metadata(counts, lengths, rows), torch.zeros(5, 4, DIM)
    )
    assert not out[4].any()
    wanted = torch.nn.functional.scaled_dot_product_attention(
        query[3].unsqueeze(1),
        cache[1, :33, 0].transpose(0, 1),
        cache[1, :33, 1].transpose(0, 1),
        enable_gqa=True,
    )
    torch.testing.assert_close(out[3], wanted.squeeze(1))
    other = layer.forward(
        LAYER, query, key, value, cache, metadata(counts, lengths, [2, 3]), torch.zeros(5, 4, DIM)
    )
    assert torch.equal(other[:3], out[:3])
    assert not torch.equal(other[3], out[3])


@pytest.mark.parametrize("block", [64, 16])
def test_a_table_of_the_rows_gives_what_rows_give(layer, block):
    caches = torch.randn(2, ROWS, TOKENS, 2, HEADS, DIM)
    query, key, value = torch.randn(4, 4, DIM), *torch.randn(2, 4, HEADS, DIM)
    for cache in caches:
        outs = [
            layer.forward(
                LAYER, query, key, value, cache,
                metadata([3, 1], [20, 33], [2, 1], table_block), torch.zeros(4, 4, DIM),
            )
            for table_block in (None, block)
        ]  # fmt: skip
        assert torch.equal(*outs)
        assert outs[0].any()


def test_another_cache_is_not_taken_for_the_one_before(layer):
    query, key, value = torch.randn(1, 4, DIM), *torch.randn(2, 1, HEADS, DIM)
    caches = torch.randn(2, ROWS, TOKENS, 2, HEADS, DIM)
    first, second = (
        layer.forward(
            LAYER, query, key, value, cache, metadata([1], [9], [0]), torch.zeros(1, 4, DIM)
        )
        for cache in caches
    )
    assert not torch.equal(first, second)


def test_vllms_own_memory_is_refused_by_what_is_missing(layer):
    paged = torch.zeros(8, HEADS, 16, 2 * DIM)
    with pytest.raises(UnsupportedError, match=r"add --worker-cls pyvattn\.vllm\.Worker"):
        layer.do_kv_cache_update(LAYER, None, None, paged, None)
    with pytest.raises(UnsupportedError, match=r"add --worker-cls pyvattn\.vllm\.Worker"):
        layer.forward(LAYER, None, None, None, paged, metadata([1], [1], [0]), None)


@pytest.mark.parametrize(
    ("version", "slopes", "kind", "message"),
    [
        (2, None, "decoder", "FlashAttention-2 without a block table"),
        (3, [1.0, 1.0, 1.0, 1.0], "decoder", "ALiBi"),
        (3, None, "encoder", "attention of the type encoder"),
    ],
)
def test_what_the_kernel_does_not_do_is_refused_by_name(
    layer, monkeypatch, version, slopes, kind, message
):
    monkeypatch.setattr(flash_attn, "get_flash_attn_version", lambda **_: version)
    with pytest.raises(UnsupportedError, match=message):
        FlashRowAttention(4, DIM, 1.0, HEADS, slopes, None, "auto", None, kind)


def make_builder(monkeypatch, block_size=16, **options):
    def begin(self, spec, names, config, device):
        self.max_cudagraph_size = 8
        self.num_heads_q, self.num_heads_kv = 8, 2

    base = flash_attn.FlashAttentionMetadataBuilder
    monkeypatch.setattr(base, "__init__", begin)
    monkeypatch.setattr(base, "build", lambda self, *_: SimpleNamespace(page_size=self.block_size))
    config = SimpleNamespace(
        model_config=SimpleNamespace(max_model_len=100),
        scheduler_config=SimpleNamespace(max_num_seqs=4),
        additional_config={"pyvattn": options},
    )
    spec = SimpleNamespace(block_size=block_size)
    return FlashRowBuilder(spec, [], config, torch.device("cpu"))


def build(builder, first_ids, most_queries=1):
    table = torch.tensor([[first, 99] for first in first_ids], dtype=torch.int32)
    common = SimpleNamespace(
        num_reqs=len(first_ids), block_table_tensor=table, max_query_len=most_queries
    )
    return builder.build(0, common)


def test_rows_come_from_the_virtual_ids_and_stay_at_their_addresses(monkeypatch):
    builder = make_builder(monkeypatch)
    # Seven blocks to a row.
    made = build(builder, [0, 7, 35])
    assert made.rows.tolist() == [0, 1, 5]
    assert build(builder, [14, 0, 0]).rows.data_ptr() == made.rows.data_ptr()
    assert made.rows.tolist() == [2, 0, 0]
    # no pages, also to the kernel's own scheduler
    assert made.table_block is made.page_size is None


@pytest.mark.parametrize(
    ("block_size", "most_queries", "block"),
    [
        (16, 1, 16),  # seven blocks of 16 tokens in a row
        (16, 100, 16),
        (128, 1, 128),
        (128, 100, 128),  # whole tiles, and a physical page is one block
        (8, 100, 8),
        (96, 1, 64),
        (96, 100, 32),  # a tile of 64 would go on to the next page
    ],
)
def test_the_tables_blocks_are_those_that_the_kernels_scheduler_is_told(
    monkeypatch, block_size, most_queries, block
):
    builder = make_builder(monkeypatch, block_size, kernel="flash-attn-3-paged")
    made = build(builder, [0, 7], most_queries)
    assert made.table_block == made.page_size == block


def test_the_backend_is_vllms_with_k_before_v():
    assert FlashRowBackend.get_kv_cache_shape(3, 16, HEADS, DIM) == (3, 16, 2, HEADS, DIM)
    assert FlashRowBackend.get_name() == "CUSTOM"
    assert FlashRowBackend.supports_sliding_window()
