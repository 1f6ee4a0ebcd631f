# SPDX-License-Identifier: Apache-2.0
"""Windows kept in rings: pages mapped twice side by side, and no driver call once all are there."""

from __future__ import annotations

import numpy as np
import pytest

from pyvattn import CacheSpec, LayerGroup, LengthError, SpecError, TensorError
from pyvattn.planner import held_bytes

WINDOW = 100


def ring_spec(ring=True, **changes):
    """64 tokens of the windowed layers in a page of 64K: 4 pages in a ring of two windows."""
    groups = [LayerGroup([0], kv_heads=4, head_dim=64, window=WINDOW, ring=ring)]
    if changes.pop("full", False):
        groups.append(LayerGroup([1], kv_heads=4, head_dim=64))
    fields = {"dtype": "float32", "max_slots": 4, "max_tokens": 5000, "guard_tokens": 0}
    return CacheSpec(groups=groups, **{**fields, **changes})


def calls(cache):
    s = cache.stats()
    return s.map_calls, s.map_batches, s.unmap_calls, s.zeroed_bytes


@pytest.mark.parametrize("background", [False, True])
def test_a_token_costs_no_driver_call_once_the_ring_is_whole(open_bench, driver_name, background):
    bench = open_bench(ring_spec(), name=driver_name, background=background, shares=True)
    cache = bench.cache
    ring = cache.geometry.ring_tokens
    slot = cache.admit(1)
    for length in range(2, ring + 1):
        cache.step({slot: length})
    cache.drain()
    before, live = calls(cache), cache.stats().pages_live
    assert live == 2 * ring * 1024 // bench.page
    for length in range(ring + 1, 5001):
        cache.step({slot: length})
    cache.drain()
    assert calls(cache) == before
    assert cache.stats().pages_live == live


def test_the_next_request_finds_the_ring_in_place(open_bench, driver_name):
    cache = open_bench(ring_spec(), name=driver_name, shares=True).cache
    cache.release(cache.admit(4000))
    maps = cache.stats().map_calls
    cache.admit(4000)
    assert cache.stats().map_calls == maps


def test_every_token_has_two_addresses(open_bench, driver_name):
    bench = open_bench(ring_spec(), name=driver_name, shares=True)
    cache = bench.cache
    ring = cache.geometry.ring_tokens
    slot = cache.admit(10)
    for tensor in bench.arrays():
        assert tensor.shape == (4, 2 * ring, 4, 64)
        tensor[slot, :10] = 3
        assert (tensor[slot, ring : ring + 10] == 3).all()
    cache.step({slot: ring})
    for tensor in bench.arrays():
        tensor[slot, 2 * ring - 1] = 5
        assert (tensor[slot, ring - 1] == 5).all()
        assert not tensor[slot, 10 : ring - 1].any()


def test_a_long_prompt_holds_a_ring_and_the_other_layers_everything(open_bench):
    bench = open_bench(ring_spec(full=True), pages=256, shares=True)
    cache = bench.cache
    cache.admit(5000)
    held = held_bytes(cache.spec, cache.geometries, 5000, False)
    assert cache.stats().pages_live * bench.page == held
    assert held == 2 * 4 * bench.page + 2 * 79 * bench.page
    assert cache.geometries[0].arena_bytes == 4 * 2 * 4 * bench.page


def test_rings_are_as_long_as_pages_and_guards_want():
    def ring_of(ring, **changes):
        return ring_spec(ring, **changes).geometries("layer", "64K")[0].ring_tokens

    assert ring_of(True) == 256
    assert ring_of(True, guard_tokens=57) == 320
    assert ring_of(101) == 128
    assert ring_of(129) == 192
    assert ring_of(False) == 0
    # Rows as long as requests are no longer than that.
    assert ring_of(True, max_tokens=256) == 0
    assert ring_of(True, max_tokens=257) == 256
    # A token of three heads does not divide a page.
    group = LayerGroup([0], kv_heads=3, head_dim=64, window=WINDOW, ring=True)
    spec = CacheSpec(groups=[group], dtype="float32", max_tokens=5000, guard_tokens=0)
    geometry = spec.geometry("token", "64K")
    assert geometry.ring_tokens * geometry.token_bytes % geometry.page_size == 0
    assert geometry.ring_tokens == 256


@pytest.mark.parametrize(
    ("ring", "window", "message"),
    [
        (True, None, "ring=True of a LayerGroup keeps a window"),
        (300, None, "ring=300 of a LayerGroup with window=None"),
        (100, 100, "ring=100 of a LayerGroup with window=100"),
        (0, 100, "ring=0"),
        ("two", 100, "ring='two'"),
        (None, 100, "ring=None"),
    ],
)
def test_rings_that_cannot_be_are_refused(ring, window, message):
    with pytest.raises(SpecError, match=message):
        LayerGroup([0], 4, 64, window=window, ring=ring)


def test_lengths_fall_as_far_as_the_ring_has_room(open_bench):
    cache = open_bench(ring_spec(), shares=True).cache
    assert cache.chunk_tokens == 157
    slot = cache.admit(250)
    with pytest.raises(LengthError, match=r"cannot fall to 240: step in smaller chunks"):
        cache.step({slot: 400}, rollback=10)
    assert cache.length(slot) == 250
    cache.step({slot: 260}, rollback=10)
    cache.step({slot: 240})
    with pytest.raises(LengthError, match="pass rollback="):
        cache.step({slot: 239})
    cache.step({slot: 4000})
    with pytest.raises(LengthError, match="newer ones took the place"):
        cache.step({slot: 3842})
    cache.step({slot: 3843})


def fill(bench, slot, first, end):
    """Write tokens whose values are their numbers, as they come."""
    places = np.arange(first, end)
    for part, tensor in enumerate(bench.arrays()):
        tensor[slot, places % bench.cache.geometries[0].ring_tokens] = (
            places + 10_000 * part
        ).reshape(-1, 1, 1)


def window_of(bench, slot, length):
    """The window before the next token, of K and of V."""
    ring = bench.cache.geometries[0].ring_tokens
    begin = (length - WINDOW + 1) % ring
    return [tensor[slot, begin : begin + WINDOW - 1, 0, 0].copy() for tensor in bench.arrays()]


def numbered(length):
    tokens = np.arange(length - WINDOW + 1, length, dtype=np.float32)
    return [tokens, tokens + 10_000]


@pytest.mark.parametrize("tokens", [250, 620])
def test_a_fork_has_a_ring_of_its_own(open_bench, tokens):
    bench = open_bench(ring_spec(full=True), shares=True)
    cache = bench.cache
    slot = cache.admit(tokens)
    fill(bench, slot, max(0, tokens - 256), tokens)
    fork = cache.fork(slot)
    assert cache.length(fork) == tokens
    np.testing.assert_array_equal(window_of(bench, fork, tokens), numbered(tokens))
    cache.step({slot: tokens + 120})
    fill(bench, slot, tokens, tokens + 120)
    np.testing.assert_array_equal(window_of(bench, fork, tokens), numbered(tokens))
    with pytest.raises(LengthError, match=r"a ring of 256|pass rollback="):
        cache.fork(slot, tokens - 150)
    cache.release(slot)
    np.testing.assert_array_equal(window_of(bench, fork, tokens), numbered(tokens))


@pytest.mark.parametrize("tokens", [90, 250, 620])
def test_an_offloaded_ring_comes_back(open_bench, tokens):
    pytest.importorskip("torch")
    bench = open_bench(ring_spec(full=True), shares=True)
    cache = bench.cache
    slot = cache.admit(tokens)
    fill(bench, slot, max(0, tokens - 256), tokens)
    away = cache.offload(slot)
    cache.release(slot)
    back = cache.restore(away)
    assert cache.length(back) == tokens
    if tokens >= WINDOW:
        np.testing.assert_array_equal(window_of(bench, back, tokens), numbered(tokens))
    cache.step({back: tokens + 10})
    with pytest.raises(TensorError, match=r"tokens of layers with a window for rings of 128"):
        open_bench(ring_spec(110, full=True), shares=True).cache.restore(
            cache.offload(cache.admit(300))
        )
