# SPDX-License-Identifier: Apache-2.0
"""States in a cache: a row of a fixed size for each request, in the same memory as its tokens."""

from __future__ import annotations

import numpy as np
import pytest
from checked_cache import small_spec

from pyvattn import (
    DriverError,
    KVCache,
    LayerError,
    LengthError,
    OutOfMemory,
    StateGroup,
    TensorError,
)
from pyvattn.planner import held_bytes

# Not a whole number of pages, nor of what kernels read at once.
MAMBA = StateGroup([0, 2], {"conv": ((3, 50), "float16"), "ssm": ((10, 100, 77), "float32")})
CONV = StateGroup([1], {"conv": ((7,), "float32")}, copies=2)
STATE_PAGES = 10


def state_spec(**changes):
    return small_spec(states=[MAMBA, CONV], **changes)


def states(cache):
    return [cache.state(layer, np.from_dlpack) for layer in range(3)]


def fill(cache, slot, value):
    for each in states(cache):
        for tensor in each.values():
            tensor[slot.index] = value


def holds(cache, slot, value):
    return all((t[slot.index] == value).all() for each in states(cache) for t in each.values())


def test_each_tensor_has_its_shape_and_dtype_and_nobody_elses_bytes(open_bench, driver_name):
    cache = open_bench(state_spec(), name=driver_name).cache
    first, second, third = states(cache)
    assert {name: (t.shape, t.dtype.name) for name, t in first.items()} == {
        "conv": ((4, 3, 50), "float16"),
        "ssm": ((4, 10, 100, 77), "float32"),
    }
    assert second["conv"].shape == (4, 2, 7)
    slots = [cache.admit(1), cache.admit(100)]
    every = [each[name] for each in (first, second, third) for name in each]
    for number, slot in enumerate(slots):
        for place, tensor in enumerate(every):
            tensor[slot.index] = 10 * number + place
    for number, slot in enumerate(slots):
        for place, tensor in enumerate(every):
            assert (tensor[slot.index] == 10 * number + place).all()
    for layer in range(2):
        for tensor in cache.layer(layer, np.from_dlpack):
            assert not tensor[slots[1].index, :100].any()


@pytest.mark.parametrize("background", [False, True])
def test_a_state_is_zero_at_first_and_stays_as_the_request_grows(
    open_bench, driver_name, background
):
    cache = open_bench(state_spec(max_slots=1), name=driver_name, background=background).cache
    slot = cache.acquire(500)
    cache.step({slot: 1})
    assert holds(cache, slot, 0)
    fill(cache, slot, 3)
    for length in (2, 400, 100, 900):
        cache.step({slot: length})
        assert holds(cache, slot, 3)
    cache.release(slot)
    again = cache.admit(5)
    assert holds(cache, again, 0)


def test_strict_leaves_states_zero():
    options = {"page_size": "64K", "layout": "layer", "memory": "16MiB", "strict": True}
    with KVCache(state_spec(), device="cpu", **options) as cache:
        slot = cache.admit(10)
        assert holds(cache, slot, 0)
        assert np.isnan(cache.layer(0, np.from_dlpack)[0][slot.index, 10]).all()
        fill(cache, slot, 1)
        cache.step({slot: 200})
        assert holds(cache, slot, 1)
        cache.release(slot)


def test_states_take_their_pages_out_of_the_same_limit(open_bench):
    # Per request: 4 pages of K and V, and those of the state.
    bench = open_bench(state_spec(), pages=2 * (4 + STATE_PAGES))
    cache = bench.cache
    slot = cache.admit(64)
    stats = bench.check_books()
    assert stats.pages_live == 4 + STATE_PAGES
    held = held_bytes(cache.spec, cache.geometries, 64, False)
    assert held == stats.pages_live * stats.page_size
    assert stats.bytes_used == 64 * cache.spec.token_bytes + cache._states.bytes
    assert cache.live_pages() == {slot: 4 + STATE_PAGES}
    assert cache.can_admit(64)
    other = cache.admit(64)
    assert not cache.can_admit(1)
    with pytest.raises(OutOfMemory):
        cache.admit(1)
    # No page of the state moved to where tokens go.
    with pytest.raises(OutOfMemory):
        cache.step({slot: 65})
    assert (cache.length(slot), holds(cache, slot, 0)) == (64, True)
    cache.release(other)
    # What the state of a released request had is for tokens of another.
    cache.step({slot: 64 * 4})
    assert cache.stats().pages_live == 4 * 4 + STATE_PAGES


def test_a_slot_without_tokens_has_no_state(open_bench):
    bench = open_bench(state_spec())
    slot = bench.cache.acquire(100)
    assert bench.check_books().pages_live == 0
    bench.cache.step({slot: 0})
    assert bench.check_books().pages_live == 0
    bench.cache.step({slot: 1})
    assert bench.check_books().pages_live == 4 + STATE_PAGES
    bench.cache.trim(slot, 0)
    assert bench.check_books().pages_live == 0
    bench.cache.step({slot: 9})
    assert holds(bench.cache, slot, 0)


def test_a_fork_has_a_copy_of_its_own(open_bench, driver_name):
    bench = open_bench(state_spec(), name=driver_name, shares=True)
    cache = bench.cache
    slot = cache.admit(130)
    fill(cache, slot, 7)
    fork = cache.fork(slot)
    assert holds(cache, fork, 7)
    fill(cache, fork, 8)
    cache.step({fork: 131})
    assert holds(cache, slot, 7)
    cache.release(slot)
    assert holds(cache, fork, 8)


def test_a_state_belongs_to_the_whole_length(open_bench):
    cache = open_bench(state_spec(), shares=True).cache
    slot = cache.admit(130)
    fill(cache, slot, 7)
    live = cache.live_slots()
    with pytest.raises(LengthError, match="has states, which have seen all of its 130 tokens"):
        cache.fork(slot, 64)
    with pytest.raises(LengthError, match=r"tokens=64: .*has states"):
        cache.offload(slot, 64)
    assert cache.live_slots() == live
    empty = cache.fork(slot, 0)
    cache.step({empty: 1})
    assert holds(cache, empty, 0)
    # Who takes a token back writes the state back.
    cache.step({slot: 129})
    assert holds(cache, cache.fork(slot), 7)


def test_a_state_comes_back_from_the_host(open_bench):
    cache = open_bench(state_spec()).cache
    slot = cache.admit(70)
    fill(cache, slot, 5)
    away = cache.offload(slot)
    assert away.state_bytes == cache._states.bytes
    assert away.bytes == 70 * cache.spec.token_bytes + away.state_bytes
    cache.release(slot)
    for _ in range(2):
        assert holds(cache, cache.restore(away), 5)
    nothing = cache.offload(cache.acquire())
    assert nothing.bytes == 0
    assert cache.length(cache.restore(nothing)) == 0
    other = open_bench(small_spec()).cache
    with pytest.raises(TensorError, match=r"states of \d+ bytes.* take 0"):
        other.restore(away)


def test_layers_that_keep_no_state_are_refused(open_bench):
    cache = open_bench(state_spec()).cache
    assert cache.state(-1, np.from_dlpack).keys() == {"conv", "ssm"}
    with pytest.raises(LayerError, match=r"state of layer 3 is outside 0\.\.2"):
        cache.state(3)
    with pytest.raises(LayerError, match="give CacheSpec a StateGroup"):
        open_bench(small_spec()).cache.state(0)


def test_a_failed_step_leaves_states_and_tokens_as_they_were(open_bench, driver_name):
    bench = open_bench(state_spec(), name=driver_name)
    kept = bench.cache.admit(64)
    fill(bench.cache, kept, 4)
    new = bench.cache.acquire(64)
    used = bench.state()["bytes_used"]
    failures = 0
    for nth in range(40):
        bench.faults.fail_nth(nth)
        try:
            bench.cache.step({kept: 65, new: 64})
        except DriverError:
            failures += 1
            assert (bench.cache.length(kept), bench.cache.length(new)) == (64, 0)
            assert holds(bench.cache, kept, 4)
            assert bench.state()["bytes_used"] == used
        else:
            break
    assert failures > 1
    bench.faults.disarm()
    assert holds(bench.cache, new, 0)
