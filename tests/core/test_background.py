# SPDX-License-Identifier: Apache-2.0
"""The mapper thread: what it maps ahead, and that it never gets in the way."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from checked_cache import small_spec

from pyvattn import BusyError, KVCache, LengthError, OutOfMemory


def test_prefetch_maps_what_the_next_step_needs(open_bench, driver_name):
    bench = open_bench(name=driver_name, background=True)
    slot = bench.cache.acquire()
    bench.cache.prefetch({slot: 500})
    bench.cache.drain()
    calls = bench.cache.stats().map_calls
    assert calls > 0
    bench.cache.step({slot: 500})
    s = bench.cache.stats()
    assert s.map_calls == calls
    assert s.map_seconds_hidden > s.map_seconds_blocking


def test_the_next_decode_step_finds_its_pages(open_bench):
    """64 tokens fill a page: token 65 is mapped while token 64 is computed."""
    bench = open_bench(background=True)
    slot = bench.cache.acquire()
    bench.cache.step({slot: 63})
    bench.cache.drain()
    before = bench.cache.stats().map_calls
    bench.cache.step({slot: 64})
    bench.cache.drain()
    ahead = bench.cache.stats().map_calls
    assert ahead > before
    bench.cache.step({slot: 65})
    assert bench.cache.stats().map_calls == ahead


def test_the_next_admission_finds_its_pages(open_bench):
    bench = open_bench(background=True)
    live = []
    for _ in range(3):
        live.append(bench.cache.acquire(300))
        bench.cache.drain()
        bench.cache.step({live[-1]: 300})
    calls = bench.cache.stats().map_calls
    live.append(bench.cache.acquire(200))
    bench.cache.drain()
    bench.cache.step({live[-1]: 200})
    assert bench.cache.stats().map_calls - calls <= 4, "only the admission after this one"


def test_preparing_an_admission_takes_nothing_from_others(open_bench):
    bench = open_bench(background=True, pages=16)
    slot = bench.cache.acquire(200)
    bench.cache.step({slot: 200})
    bench.cache.drain()
    assert bench.check_books().pages_live == 16


def test_nothing_is_mapped_ahead_without_the_background(open_bench):
    bench = open_bench()
    slot = bench.cache.acquire()
    bench.cache.step({slot: 64})
    bench.cache.prefetch({slot: 500})
    bench.cache.drain()
    assert bench.check_books().pages_mapped == 4


def test_prefetch_refuses_impossible_lengths_at_once(open_bench):
    bench = open_bench(background=True)
    slot = bench.cache.acquire()
    with pytest.raises(LengthError):
        bench.cache.prefetch({slot: 2000})


def test_what_prefetch_cannot_have_is_left_to_step(open_bench):
    bench = open_bench(background=True, pages=16)
    slot = bench.cache.acquire()
    bench.cache.prefetch({slot: 1024})
    bench.cache.drain()
    bench.check_books()
    with pytest.raises(OutOfMemory):
        bench.cache.step({slot: 1024})
    bench.cache.step({slot: 256})


def test_a_released_slot_is_cleaned_in_the_background(open_bench):
    bench = open_bench(background=True)
    slot = bench.cache.acquire()
    bench.cache.step({slot: 500})
    bench.arrays()[0][slot, :500] = 5
    bench.cache.release(slot)
    bench.cache.drain()
    s = bench.check_books()
    assert s.pages_quarantined == 0
    assert s.zeroed_bytes == s.pages_retained * s.page_size
    assert not bench.arrays()[0][slot.index, :500].any()


def test_two_threads_in_step_are_told(open_bench):
    """A step that waits for the first keeps the second out."""
    bench = open_bench(small_spec(max_slots=2, max_tokens=1 << 16), pages=1 << 13)
    slots = [bench.cache.acquire() for _ in range(2)]
    busy = []
    start = threading.Barrier(2)

    def hammer(slot):
        start.wait()
        for length in range(1, 1 << 16, 13):
            try:
                bench.cache.step({slot: length})
            except BusyError as error:
                busy.append(str(error))

    threads = [threading.Thread(target=hammer, args=(slot,)) for slot in slots]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert busy
    assert "let one thread step" in busy[0]
    bench.check_books()


def test_other_calls_beside_step(open_bench):
    """acquire, release, prefetch, stats and resize from a second thread."""
    bench = open_bench(small_spec(max_slots=8), background=True, pages=512)
    stop = threading.Event()
    errors = []

    def churn():
        rng = np.random.default_rng(1)
        try:
            while not stop.is_set():
                slot = bench.cache.acquire(int(rng.integers(1, 500)))
                bench.cache.prefetch({slot: int(rng.integers(1, 500))})
                bench.cache.stats()
                bench.cache.can_admit(100)
                bench.cache.resize(f"{int(rng.integers(24, 32))}MiB")
                bench.cache.release(slot)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=churn)
    thread.start()
    slots = [bench.cache.acquire() for _ in range(4)]
    for length in range(1, 1024, 3):
        bench.cache.step(dict.fromkeys(slots, length))
        bench.arrays()[0][slots[0], length - 1] = length
    stop.set()
    thread.join()
    assert not errors
    bench.cache.drain()
    bench.check_books()
    assert (bench.arrays()[0][slots[0], 0:1023:3, 0, 0] == np.arange(1, 1024, 3)).all()


def resident() -> int:
    """Pages of 4 KiB that this process has in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1])


def test_memory_does_not_grow_over_many_steps():
    """Requests come, grow and go for ten million slot steps."""
    spec = small_spec(max_slots=256, max_tokens=512)
    with KVCache(spec, device="cpu", memory="1GiB", accounting=True) as cache:
        lengths = np.zeros(256, dtype=np.int64)
        rows = np.arange(256, dtype=np.int64)
        slots = {}
        for slot in (cache.acquire(200) for _ in range(256)):
            slots[slot.index] = slot
        lengths[:] = rows + 1

        def run(steps):
            nonlocal lengths
            for _ in range(steps):
                lengths += 1
                for row in np.flatnonzero(lengths > 512):
                    cache.release(slots[int(row)])
                    cache.drain()
                    slot = cache.acquire(200)
                    slots[slot.index] = slot
                    lengths[slot.index] = 1
                cache.step_array(rows, lengths)

        run(5_000)
        cache.drain()
        memory, stats = resident(), cache.stats()
        run(40_000)
        cache.drain()
        after = cache.stats()
        assert resident() - memory < 256
        assert after.pages_allocated == stats.pages_allocated
        assert after.bookkeeping_bytes <= 1.1 * stats.bookkeeping_bytes


def test_ten_million_steps_leave_memory_where_it_was():
    """Steps of one token each, in requests that come one after the other."""
    spec = small_spec(max_slots=1, max_tokens=8192)
    with KVCache(spec, device="cpu", memory="1GiB", accounting=True) as cache:

        def serve_one_request():
            slot = cache.acquire(100)
            for length in range(1, 8193):
                cache.step({slot: length})
            cache.release(slot)
            cache.drain()

        serve_one_request()
        memory, stats = resident(), cache.stats()
        for _ in range(10_000_000 // 8192 + 1):
            serve_one_request()
        after = cache.stats()
        assert resident() - memory < 256
        assert after.pages_allocated == stats.pages_allocated
        assert after.pages_mapped == stats.pages_mapped
        assert after.bookkeeping_bytes <= 1.1 * stats.bookkeeping_bytes


def test_bookkeeping_is_small():
    """Under 64 bytes for each mapped page and 1 KiB for each slot."""
    spec = small_spec(layers=32, max_slots=512, max_tokens=4096)
    with KVCache(spec, device="cpu", memory="16GiB", accounting=True, layout="layer") as cache:
        empty = cache.stats().bookkeeping_bytes
        assert empty < 1024 * spec.max_slots
        cache.step({cache.acquire(): 4096 for _ in range(50)})
        s = cache.stats()
        assert s.pages_mapped > 100_000
        assert s.bookkeeping_bytes - empty < 64 * s.pages_mapped
