# SPDX-License-Identifier: Apache-2.0
"""Slots that go to pinned memory and come back while the GPU works."""

# ruff: noqa: E402
from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from pyvattn import CacheSpec, KVCache

SPEC = CacheSpec(2, 8, 128, "bfloat16", max_slots=4, max_tokens=16384)
TOKENS = 10000


@pytest.fixture(params=["cumem", "stock-uvm"])
def cache(request):
    with KVCache(
        SPEC, device="cuda", driver=request.param, layout="layer", memory="2GiB"
    ) as opened:
        yield opened


def fill(cache, slot, seed):
    torch.manual_seed(seed)
    for layer in range(SPEC.layers):
        for tensor in cache.layer(layer):
            tensor[int(slot), :TOKENS] = torch.randn(
                TOKENS, 8, 128, device="cuda", dtype=torch.bfloat16
            )


def read(cache, slot):
    return [
        tensor[int(slot), :TOKENS].clone()
        for layer in range(SPEC.layers)
        for tensor in cache.layer(layer)
    ]


def test_a_slot_that_is_released_right_after_comes_back_on_another_stream(cache):
    slot = cache.admit(TOKENS)
    fill(cache, slot, seed=1)
    written = read(cache, slot)
    kept = cache.offload(slot)
    assert all(each.is_pinned() for each in kept.data)
    # The copies may still run: nobody may get these pages before they are done.
    cache.release(slot)
    other = cache.admit(TOKENS)
    fill(cache, other, seed=2)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        back = cache.restore(kept)
        found = read(cache, back)
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(found, written, strict=True))
    cache.release(other)
    cache.release(back)
