# SPDX-License-Identifier: Apache-2.0
"""Storing new tokens on a GPU by the fused kernel: what torch's own operations would store."""

# ruff: noqa: E402
from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from pyvattn import CacheSpec, KVCache, LayerGroup
from pyvattn.attention import append, fused
from pyvattn.cuda_graphs import GraphPool

TOKENS = 64
# Slots and positions that broadcast to the tokens, in the shapes that engines use.
PLACES = {
    "tokens": ([3, 3, 3, 3, 3, 1], [0, 1, 2, 3, 4, 40]),
    "step": ([[0], [2], [5]], [[63], [7], [0]]),
    "rectangle": ([[4], [1]], [[5, 6, 7, 8]]),
}
SPECS = {
    "float32": CacheSpec(2, 3, 24, "float32", 6, TOKENS),
    "float16": CacheSpec(2, 1, 256, "float16", 6, TOKENS),
    "bfloat16": CacheSpec(2, 8, 128, "bfloat16", 6, TOKENS),
    "V narrower": CacheSpec(
        groups=[LayerGroup((0, 1), 4, 192, v_head_dim=128)],
        dtype="bfloat16",
        max_slots=6,
        max_tokens=TOKENS,
    ),
}


@pytest.mark.parametrize("layout", ["layer", "token"])
@pytest.mark.parametrize("places", PLACES)
@pytest.mark.parametrize("spec", SPECS)
def test_what_torchs_operations_store(spec, places, layout, monkeypatch):
    monkeypatch.setattr(fused, "_MANY", 0)
    slots, positions = (torch.tensor(each, device="cuda") for each in PLACES[places])
    lead = torch.broadcast_shapes(slots.shape, positions.shape)
    with KVCache(SPECS[spec], device="cuda", driver="cumem", layout=layout, memory="1GiB") as cache:
        live = [cache.admit(TOKENS) for _ in range(6)]
        stored = [each[:, :TOKENS] for each in cache.layer(1)]
        if not fused.is_fused(slots, positions, stored[0], stored[0]):
            pytest.skip("no Triton for this GPU")
        wanted = [each.clone() for each in stored]
        new = [torch.randn(*lead, *each.shape[2:], device="cuda").to(each.dtype) for each in stored]
        # As models have them: heads before tokens.
        new = [each.transpose(-2, -3).contiguous().transpose(-2, -3) for each in new]
        append(cache, 1, slots, positions, *new)
        for found, want, each in zip(stored, wanted, new, strict=True):
            want.index_put_((slots, positions), each)
            assert torch.equal(found, want)
            assert want.any()
        for slot in live:
            cache.release(slot)


def test_the_first_row_of_the_cache_need_not_have_memory(monkeypatch):
    """Triton asks the driver where a tensor's first element lies, and here it lies nowhere."""
    monkeypatch.setattr(fused, "_MANY", 0)
    spec = SPECS["bfloat16"]
    with KVCache(spec, device="cuda", driver="cumem", layout="layer", memory="1GiB") as cache:
        empty, slot = cache.acquire(), cache.admit(TOKENS)
        assert (empty.index, slot.index) == (0, 1)
        slots = torch.ones(TOKENS, dtype=torch.int64, device="cuda")
        new = torch.randn(TOKENS, 8, 128, device="cuda", dtype=torch.bfloat16)
        append(cache, 1, slots, torch.arange(TOKENS, device="cuda"), new, new)
        assert all(torch.equal(each[1, :TOKENS], new) for each in cache.layer(1))
        for each in (empty, slot):
            cache.release(each)


def test_a_captured_step_stores_by_the_kernel():
    spec = SPECS["bfloat16"]
    with KVCache(spec, device="cuda", driver="cumem", memory="1GiB") as cache:
        slot = cache.admit(TOKENS)
        slots = torch.full((1,), slot.index, dtype=torch.int64, device="cuda")
        positions = torch.zeros_like(slots)
        new = torch.randn(1, 8, 128, device="cuda", dtype=torch.bfloat16)
        replay = GraphPool(torch).capture(lambda: append(cache, 0, slots, positions, new, new))
        new.fill_(2.0)
        replay()
        assert cache.layer(0)[0][slot.index, 0].eq(2).all()
        cache.release(slot)
