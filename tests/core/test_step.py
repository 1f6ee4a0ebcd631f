# SPDX-License-Identifier: Apache-2.0
"""What step() promises: tokens below the length are backed, whole or not at all."""

from __future__ import annotations

import numpy as np
import pytest
from checked_cache import small_spec

from pyvattn import LengthError, OutOfMemory, SlotError


@pytest.mark.parametrize("layout", ["layer", "token"])
def test_every_token_below_the_length_holds_what_was_written(open_bench, driver_name, layout):
    bench = open_bench(name=driver_name, layout=layout)
    slots = [bench.cache.acquire() for _ in range(3)]
    lengths = dict(zip(slots, (1, 100, 1024), strict=True))
    bench.cache.step(lengths)
    for layer in range(2):
        for tensor in bench.arrays(layer):
            for slot, length in lengths.items():
                tensor[slot, :length] = 100 * layer + slot.index + 1
    for layer in range(2):
        for tensor in bench.arrays(layer):
            for slot, length in lengths.items():
                assert (tensor[slot, :length] == 100 * layer + slot.index + 1).all()


def test_growth_keeps_what_was_written(open_bench):
    bench = open_bench()
    slot = bench.cache.acquire()
    written = 0
    k, v = bench.arrays()
    for length in (1, 63, 64, 65, 300, 1024):
        bench.cache.step({slot: length})
        k[slot, written:length] = np.arange(written, length).reshape(-1, 1, 1)
        v[slot, written:length] = -1
        written = length
    assert (k[slot, :1024, 0, 0] == np.arange(1024)).all()
    assert (v[slot, :1024] == -1).all()


def test_addresses_never_change(open_bench):
    bench = open_bench()
    before = [t.ctypes.data for layer in range(2) for t in bench.arrays(layer)]
    slot = bench.cache.acquire()
    for length in (10, 500, 1024):
        bench.cache.step({slot: length})
    bench.cache.release(slot)
    assert [t.ctypes.data for layer in range(2) for t in bench.arrays(layer)] == before


def test_pages_are_taken_for_tokens_only(open_bench):
    bench = open_bench()
    slot = bench.cache.acquire(tokens=1024)
    assert bench.cache.stats().pages_live == 0
    for length, row_pages in ((1, 1), (64, 1), (65, 2), (640, 10), (641, 11)):
        bench.cache.step({slot: length})
        assert bench.cache.stats().pages_live == 4 * row_pages


def test_nothing_is_mapped_twice(open_bench):
    bench = open_bench()
    slot = bench.cache.acquire()
    bench.cache.step({slot: 200})
    calls = bench.cache.stats().map_calls
    for length in (200, 150, 1, 199):
        bench.cache.step({slot: length})
    assert bench.cache.stats().map_calls == calls


def test_a_long_prompt_is_one_extent_for_each_arena(open_bench):
    bench = open_bench(pages=1024)
    bench.cache.step({bench.cache.acquire(): 1024})
    assert bench.cache.stats().map_calls == 4


def test_a_growing_request_gets_neighbouring_pages(open_bench):
    """So that its pages can later be unmapped by one call."""
    bench = open_bench(small_spec(layers=1), layout="token")
    slot = bench.cache.acquire()
    for length in range(32, 1024, 32):
        bench.cache.step({slot: length})
    bench.cache.release(slot)
    bench.cache.resize(bench.page)
    assert bench.cache.stats().unmap_calls == 1


def test_lengths_may_fall(open_bench):
    bench = open_bench()
    slot = bench.cache.acquire()
    bench.cache.step({slot: 500})
    bench.cache.step({slot: 3})
    assert bench.cache.length(slot) == 3
    assert bench.cache.stats().bytes_used == 3 * bench.cache.spec.token_bytes


def test_slots_not_named_keep_their_length(open_bench):
    bench = open_bench()
    a, b = bench.cache.acquire(), bench.cache.acquire()
    bench.cache.step({a: 10, b: 20})
    bench.cache.step({b: 21})
    assert (bench.cache.length(a), bench.cache.length(b)) == (10, 21)


@pytest.mark.parametrize("length", [-1, 1025, 1 << 40])
def test_lengths_outside_the_row_are_refused(open_bench, length):
    bench = open_bench()
    a, b = bench.cache.acquire(), bench.cache.acquire()
    bench.cache.step({a: 10})
    before = bench.state()
    with pytest.raises(LengthError, match=rf"{length} tokens is outside 0\.\.1024.*max_tokens"):
        bench.cache.step({a: 900, b: length})
    assert bench.state() == before
    assert bench.cache.length(a) == 10


@pytest.mark.parametrize("length", ["7", 7.0, None])
def test_lengths_that_are_no_numbers_are_refused(open_bench, length):
    bench = open_bench()
    slot = bench.cache.acquire()
    with pytest.raises(LengthError, match="whole number"):
        bench.cache.step({slot: length})


def test_a_released_slot_is_refused(open_bench):
    bench = open_bench()
    slot = bench.cache.acquire()
    bench.cache.release(slot)
    for call in (
        lambda: bench.cache.step({slot: 1}),
        lambda: bench.cache.prefetch({slot: 1}),
        lambda: bench.cache.release(slot),
        lambda: bench.cache.length(slot),
    ):
        with pytest.raises(SlotError, match="was released"):
            call()


def test_a_slot_of_an_earlier_request_is_refused(open_bench):
    bench = open_bench(small_spec(max_slots=1))
    first = bench.cache.acquire()
    bench.cache.release(first)
    second = bench.cache.acquire()
    assert second.index == first.index
    with pytest.raises(SlotError, match="was released"):
        bench.cache.step({first: 1})
    bench.cache.step({second: 1})


def test_a_slot_of_another_cache_is_refused(open_bench):
    slot = open_bench().cache.acquire()
    with pytest.raises(SlotError, match="another cache"):
        open_bench().cache.step({slot: 1})


def test_a_number_is_no_slot(open_bench):
    with pytest.raises(SlotError, match="is not a Slot"):
        open_bench().cache.step({0: 1})


def test_rows_and_lengths_as_arrays(open_bench):
    bench = open_bench()
    slots = [bench.cache.acquire() for _ in range(2)]
    rows = np.array([s.index for s in slots])
    bench.cache.step_array(rows, np.array([5, 70]))
    assert [bench.cache.length(s) for s in slots] == [5, 70]
    with pytest.raises(SlotError, match="named twice"):
        bench.cache.step_array(np.array([rows[0], rows[0]]), np.array([1, 2]))
    free = next(i for i in range(4) if i not in rows)
    with pytest.raises(SlotError, match="released"):
        bench.cache.step_array(np.array([free]), np.array([1]))
    with pytest.raises(SlotError, match="not one of"):
        bench.cache.step_array(np.array([99]), np.array([1]))
    with pytest.raises(ValueError, match="int64"):
        bench.cache.step_array(rows.astype(np.int32), np.array([1, 2]))
    with pytest.raises(ValueError, match="2 rows, but 1"):
        bench.cache.step_array(rows, np.array([1]))
    assert [bench.cache.length(s) for s in slots] == [5, 70]


def test_out_of_memory_says_how_much_and_changes_nothing(open_bench, driver_name):
    bench = open_bench(name=driver_name, pages=8, spec=small_spec(guard_tokens=0))
    slot = bench.cache.acquire()
    tokens_per_page = bench.page // 1024
    bench.cache.step({slot: 1})
    before = bench.state()
    with pytest.raises(OutOfMemory) as caught:
        bench.cache.step({slot: min(1024, 3 * tokens_per_page)}) if driver_name == "host" else (
            bench.cache.step({bench.cache.acquire(): 1, bench.cache.acquire(): 1})
        )
    error = caught.value
    assert isinstance(error, MemoryError)
    assert error.requested == 8 * bench.page
    assert error.free == 4 * bench.page
    assert error.reclaimable == 0
    after = bench.state()
    before.pop("slots_live")
    after.pop("slots_live")
    assert after == before
    bench.cache.step({slot: 2})
