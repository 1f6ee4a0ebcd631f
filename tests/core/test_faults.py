# SPDX-License-Identifier: Apache-2.0
"""For every N, the Nth driver call of an operation fails: nothing has changed,
nothing leaks, and the same call works afterwards (invariants 5 and 6)."""

from __future__ import annotations

import pytest
from checked_cache import small_spec

from pyvattn import DriverError, LimitError, OutOfMemory

MOST_CALLS = 50


def for_every_failing_call(bench, prepare, act, out_of_memory):
    """Run ``act`` with its Nth driver call failing, for N = 0, 1, … until none is left."""
    failed = 0
    for nth in range(MOST_CALLS):
        prepare()
        before = bench.state()
        bench.faults.fail_nth(nth, out_of_memory)
        try:
            act()
        except (DriverError, OutOfMemory):
            failed += 1
            bench.faults.disarm()
            assert bench.state() == before
            bench.check_books()
            act()
            bench.check_books()
            continue
        absorbed = not bench.faults.armed
        bench.faults.disarm()
        bench.check_books()
        if not absorbed:
            return failed
    raise AssertionError("the operation never ran out of driver calls")


@pytest.mark.parametrize("out_of_memory", [False, True])
def test_growth_from_fresh_slabs(open_bench, driver_name, out_of_memory):
    # A slab holds just one such request, so that every step needs a new one.
    bench = open_bench(small_spec(max_slots=64), name=driver_name, pages=1024)
    slots = []

    def prepare():
        slots.append(bench.cache.acquire())

    failed = for_every_failing_call(
        bench, prepare, lambda: bench.cache.step({slots[-1]: 1000}), out_of_memory
    )
    # Out of memory in one call is overcome: the step tries again with what there is.
    assert failed == 0 if out_of_memory else failed >= 2


@pytest.mark.parametrize("out_of_memory", [False, True])
def test_growth_that_reclaims(open_bench, out_of_memory):
    """Unmaps a released slot's pages on the way: also those must be put back."""
    bench = open_bench(pages=64)
    slots = []

    def prepare():
        for slot in slots:
            bench.cache.release(slot)
        slots.clear()
        big = bench.cache.acquire(1024)
        bench.cache.step({big: 1024})
        bench.cache.release(big)
        slots.append(bench.cache.acquire(0))
        slots.append(bench.cache.acquire(0))

    failed = for_every_failing_call(
        bench, prepare, lambda: bench.cache.step(dict.fromkeys(slots, 500)), out_of_memory
    )
    assert failed == 0 if out_of_memory else failed >= 2


def test_a_failed_step_leaves_lengths_and_data(open_bench):
    bench = open_bench()
    slot = bench.cache.acquire()
    bench.cache.step({slot: 10})
    k, _ = bench.arrays()
    k[slot, :10] = 3
    bench.faults.fail_nth(0)
    with pytest.raises(DriverError, match="injected") as caught:
        bench.cache.step({slot: 900})
    assert caught.value.status == "injected"
    assert bench.cache.length(slot) == 10
    assert (k[slot, :10] == 3).all()


def test_resize(open_bench):
    bench = open_bench(pages=64)

    def prepare():
        bench.cache.resize(64 * bench.page)
        slot = bench.cache.acquire()
        bench.cache.step({slot: 1024})
        bench.cache.release(slot)

    for nth in range(MOST_CALLS):
        prepare()
        bench.faults.fail_nth(nth)
        try:
            bench.cache.resize(4 * bench.page)
        except DriverError:
            assert bench.cache.stats().memory_limit == 64 * bench.page
            bench.check_books()
            bench.cache.resize(4 * bench.page)
            continue
        bench.faults.disarm()
        assert nth >= 2
        return
    raise AssertionError("resize never ran out of driver calls")


def test_acquire_when_cleaning_failed(open_bench):
    bench = open_bench(small_spec(max_slots=1))
    slot = bench.cache.acquire()
    bench.cache.step({slot: 100})
    bench.arrays()[0][slot, :100] = 9
    bench.faults.fail_nth(0)
    bench.cache.release(slot)
    assert bench.check_books().pages_quarantined == 8
    bench.faults.fail_nth(0)
    with pytest.raises(DriverError, match="zero"):
        bench.cache.acquire()
    fresh = bench.cache.acquire(100)
    bench.cache.step({fresh: 100})
    assert not bench.arrays()[0][fresh, :100].any()


def test_close_can_be_called_again(open_bench):
    bench = open_bench()
    slot = bench.cache.acquire()
    bench.cache.step({slot: 1000})
    bench.faults.fail_nth(0)
    with pytest.raises(DriverError):
        bench.cache.close()
    bench.cache.close()
    assert bench.checked.mapped_bytes == 0


def test_background_failures_are_counted_and_left_to_step(open_bench):
    bench = open_bench(background=True)
    slot = bench.cache.acquire()
    bench.cache.drain()
    bench.faults.fail_nth(0)
    bench.cache.prefetch({slot: 500})
    bench.cache.drain()
    assert bench.cache.stats().prefetch_failures == 1
    assert bench.check_books().pages_live == 0
    bench.cache.step({slot: 500})


def test_the_limit_below_live_slots_is_refused(open_bench):
    bench = open_bench(pages=64)
    slot = bench.cache.acquire()
    bench.cache.step({slot: 500})
    before = bench.state()
    with pytest.raises(LimitError, match="release some first"):
        bench.cache.resize(31 * bench.page)
    assert bench.state() == before
    bench.cache.resize(32 * bench.page)


def test_a_lower_limit_gives_memory_back(open_bench):
    bench = open_bench(pages=64)
    keep, go = bench.cache.acquire(), bench.cache.acquire()
    bench.cache.step({keep: 64, go: 900})
    bench.cache.release(go)
    allocated = bench.cache.resize(16 * bench.page)
    assert allocated == bench.cache.stats().bytes_allocated <= 16 * bench.page
    with pytest.raises(OutOfMemory):
        bench.cache.step({keep: 400})
    bench.cache.resize(64 * bench.page)
    bench.cache.step({keep: 400})
