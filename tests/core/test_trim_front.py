# SPDX-License-Identifier: Apache-2.0
"""Slots that lose their front: what goes back, when, and what stays."""

from __future__ import annotations

import queue
import random
import threading

import numpy as np
import pytest
from checked_cache import Later, small_spec

from pyvattn import (
    DriverError,
    KVCache,
    LengthError,
    OutOfMemory,
    OutOfSlots,
    _native,
)
from pyvattn._native import emulated_cuda as gpu


def test_whole_pages_below_the_front_go_back(open_bench, driver_name):
    bench = open_bench(
        name=driver_name, pages=1024, spec=small_spec(guard_tokens=0, max_tokens=16384)
    )
    cache, keys = bench.cache, bench.arrays()[0]
    page = bench.page // 1024
    slot = cache.admit(3 * page)
    keys[slot, : 3 * page] = 7
    cache.trim(slot, front=page + page // 2)
    s = bench.check_books()
    assert s.pages_live == s.pages_mapped == 8
    assert cache.live_pages() == {slot: 8}
    assert cache.length(slot) == 3 * page
    assert s.bytes_used == (2 * page - page // 2) * 4 * 1024
    assert (keys[slot, page + page // 2 : 3 * page] == 7).all()
    cache.step({slot: 4 * page})
    assert (keys[slot, page + page // 2 : 3 * page] == 7).all()
    cache.release(slot)
    other = cache.admit(4 * page)
    assert not keys[other, : 4 * page].any()


def test_growth_takes_nothing_that_a_fork_has(open_bench):
    bench = open_bench(small_spec(guard_tokens=0), pages=8 * 4, shares=True)
    cache, keys, later = bench.cache, bench.arrays()[0], Later()
    slot = cache.admit(128)
    keys[slot, :128] = 7
    fork = cache.fork(slot)
    cache.trim(slot, front=64, after=later.fence)
    later.come()
    cache.step({slot: 192})
    keys[slot, 128:192] = 9
    assert (keys[fork, :128] == 7).all()
    assert (keys[slot, 64:128] == 7).all()
    bench.check_books()


def test_a_window_holds_a_window(open_bench):
    bench = open_bench(small_spec(guard_tokens=0), pages=4 * 4)
    cache, keys = bench.cache, bench.arrays()[0]
    slot = cache.admit(128)
    for length in range(129, 1025):
        cache.step({slot: length})
        keys[slot, length - 1] = length
        cache.trim(slot, front=length - 64)
        assert bench.check_books().pages_live <= 3 * 4
        assert keys[slot, max(128, length - 64) : length, 0, 0].tolist() == list(
            range(max(129, length - 63), length + 1)
        )


def test_growth_takes_what_the_same_row_gave_up_without_zeroing_it(open_bench):
    bench = open_bench(small_spec(guard_tokens=0), pages=4 * 4)
    cache = bench.cache
    later = Later()
    slot = cache.admit(256)
    cache.trim(slot, front=64, after=later.fence)
    assert bench.check_books().pages_quarantined == 4
    later.come()
    cache.step({slot: 257})
    s = bench.check_books()
    assert (s.pages_live, s.pages_quarantined, s.zeroed_bytes) == (16, 0, 0)
    # They hold old tokens: the next request gets zeros.
    bench.arrays()[0][slot, 256] = 9
    cache.release(slot)
    other = cache.admit(320 - 64)
    assert not bench.arrays()[0][other, :256].any()


def test_no_page_goes_before_its_fence(open_bench):
    bench = open_bench(small_spec(guard_tokens=0), pages=6 * 4)
    cache, keys = bench.cache, bench.arrays()[0]
    first, second = Later(), Later()
    slot = cache.admit(256)
    keys[slot, :256] = 7
    cache.trim(slot, front=64, after=first.fence)
    cache.trim(slot, front=128, after=second.fence)
    cache.admit(64)
    assert (keys[slot, :256] == 7).all()
    assert bench.check_books().pages_quarantined == 8
    # What passes first goes first.
    first.come()
    cache.step({slot: 257})
    assert bench.check_books().pages_quarantined == 4
    assert cache.can_admit(128)
    assert not cache.can_admit(192)
    other = cache.acquire(128)
    assert cache.try_step({other: 128}) is False
    assert (keys[slot, 64:256] == 7).all()
    second.come()
    cache.step({other: 128})
    assert not keys[other, :128].any()
    assert (keys[slot, 128:256] == 7).all()


def test_a_released_slot_waits_for_the_fences_of_its_front(open_bench):
    bench = open_bench(small_spec(guard_tokens=0), pages=4 * 4)
    cache, keys = bench.cache, bench.arrays()[0]
    later = Later()
    slot = cache.admit(256)
    keys[slot, :256] = 7
    cache.trim(slot, front=128, after=later.fence)
    cache.release(slot)
    assert (keys[slot, :256] == 7).all()
    other = cache.acquire(0)
    assert cache.try_step({other: 256}) is False
    assert (keys[slot, :256] == 7).all()
    later.come()
    cache.step({other: 256})
    assert not keys[other, :256].any()


def test_no_length_falls_below_a_trimmed_front(open_bench):
    bench = open_bench()
    slot = bench.cache.admit(300)
    bench.cache.trim(slot, front=100)
    before = bench.state()
    for shorter in (0, 99):
        with pytest.raises(LengthError, match="the first 100 tokens of slot 0 were trimmed"):
            bench.cache.step({slot: shorter})
        with pytest.raises(LengthError, match="trimmed"):
            bench.cache.trim(slot, shorter)
        with pytest.raises(LengthError, match="trimmed"):
            bench.cache.fork(slot, shorter)
    with pytest.raises(LengthError, match="cannot lose the first 301"):
        bench.cache.trim(slot, front=301)
    with pytest.raises(LengthError, match="front=200"):
        bench.cache.trim(slot, 150, front=200)
    assert bench.state() == before
    # Less than before changes nothing.
    bench.cache.trim(slot, front=50)
    assert bench.state() == before
    bench.cache.trim(slot, 200, front=150)
    assert bench.cache.length(slot) == 200
    bench.check_books()


def test_a_slot_can_lose_all_it_has_and_go_on(open_bench):
    bench = open_bench(small_spec(guard_tokens=0))
    cache = bench.cache
    slot = cache.admit(256)
    bench.arrays()[0][slot, :256] = 7
    cache.trim(slot, front=256)
    assert bench.check_books().pages_mapped == 0
    assert cache.live_pages() == {slot: 0}
    fork = cache.fork(slot)
    assert cache.live_pages() == {slot: 0, fork: 0}
    for each in (slot, fork):
        cache.step({each: 300})
        assert not bench.arrays()[0][each, 256:300].any()
        assert cache.live_pages()[each] == 4
    bench.check_books()


def test_a_shared_page_only_loses_a_holder(open_bench):
    bench = open_bench(small_spec(guard_tokens=0), shares=True)
    cache, keys = bench.cache, bench.arrays()[0]
    slot = cache.admit(300)
    keys[slot, :300] = 7
    fork = cache.fork(slot)
    before = bench.check_books().pages_live
    cache.trim(slot, front=200)
    assert bench.check_books().pages_live == before
    assert (keys[fork, :300] == 7).all()
    # A fork of a trimmed slot begins where that does.
    second = cache.fork(slot)
    assert cache.live_pages() == {slot: 8, fork: 20, second: 8}
    assert (keys[second, 200:300] == 7).all()
    cache.trim(fork, front=200)
    assert bench.check_books().pages_live == before + 4 - 3 * 4
    cache.release(slot)
    cache.release(fork)
    assert (keys[second, 200:300] == 7).all()
    other = cache.admit(300)
    assert not keys[other, :300].any()


@pytest.mark.parametrize("nth", [0, 1])
def test_a_front_that_cannot_be_unmapped_goes_later(open_bench, nth):
    bench = open_bench(small_spec(guard_tokens=0))
    cache = bench.cache
    slot = cache.admit(256)
    bench.arrays()[0][slot, :256] = 7
    bench.faults.fail_nth(nth)
    cache.trim(slot, front=128)
    assert bench.check_books().pages_quarantined == 8
    bench.faults.fail_nth(nth)
    with pytest.raises(DriverError):
        cache.step({slot: 257})
    bench.faults.disarm()
    assert (bench.arrays()[0][slot, 128:256] == 7).all()
    cache.step({slot: 257})
    bench.check_books()


def test_strict_poisons_below_the_front():
    spec = small_spec(guard_tokens=0)
    with KVCache(
        spec,
        device="cpu",
        page_size="64K",
        layout="layer",
        memory="8MiB",
        strict=True,
        background=False,
    ) as cache:
        keys = cache.layer(0, np.from_dlpack)[0]
        slot = cache.admit(200)
        keys[slot, :200] = 7
        cache.trim(slot, front=150)
        # The page of tokens 128 to 191 stays.
        assert np.isnan(keys[slot, 128:150]).all()
        assert (keys[slot, 150:200] == 7).all()
        cache.trim(slot, front=160, after=Later().fence)
        assert not np.isnan(keys[slot, 150:160]).any()


def test_kernels_below_the_front_are_waited_for_on_a_gpu():
    gpu.reset()
    page = 2 << 20
    driver = _native.make_driver("cumem-emulated", page)
    spec = small_spec(max_tokens=8192, guard_tokens=0)
    with KVCache.on_driver(
        spec, driver, layout="layer", memory=16 * page, background=False
    ) as cache:
        slot = cache.admit(8192)
        stream = gpu.make_stream(0)
        address = cache.layer(0, np.from_dlpack)[0][slot, :1].__array_interface__["data"][0]
        kernel = gpu.launch_kernel(0, stream, address, 4)
        cache.trim(slot, front=4096, after=stream)
        assert cache.stats().pages_quarantined == 8
        gpu.release_kernel(kernel)
        _native.stream_fence("cumem-emulated", 0, gpu.make_stream(0)).wait()
        other = cache.admit(4096)
        assert cache.length(other) == 4096
        assert cache.stats().pages_quarantined == 0


def test_drain_takes_away_what_kernels_have_left_since():
    gpu.reset()
    page = 2 << 20
    driver = _native.make_driver("cumem-emulated", page)
    spec = small_spec(max_tokens=8192, guard_tokens=0)
    with KVCache.on_driver(spec, driver, layout="layer", memory=32 * page) as cache:
        slot = cache.admit(8192)
        stream = gpu.make_stream(0)
        address = cache.layer(0, np.from_dlpack)[0][slot, :1].__array_interface__["data"][0]
        kernel = gpu.launch_kernel(0, stream, address, 4)
        cache.trim(slot, front=4096, after=stream)
        cache.drain()
        assert cache.live_pages() == {slot: 16}
        gpu.release_kernel(kernel)
        _native.stream_fence("cumem-emulated", 0, stream).wait()
        cache.drain()
        assert cache.live_pages() == {slot: 8}
        cache.release(slot)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("background", [False, True])
def test_random_trims_and_forks_read_what_an_unshared_cache_would(open_bench, seed, background):
    source = random.Random(seed)
    bench = open_bench(small_spec(max_slots=6), shares=True, pages=160, background=background)
    cache, keys = bench.cache, bench.arrays()[0]
    # A slot's tokens, and how many of them are trimmed.
    live: dict[object, tuple[list[int], int]] = {}
    running: queue.SimpleQueue[Later | None] = queue.SimpleQueue()

    def device():
        while (later := running.get()) is not None:
            later.come()

    thread = threading.Thread(target=device)
    thread.start()

    def after():
        if source.random() < 0.5:
            return None
        later = Later()
        running.put(later)
        return later.fence

    for _ in range(200):
        choice = source.randrange(5)
        slot = source.choice(list(live)) if live else None
        try:
            if choice == 0:
                live[cache.acquire(source.randrange(300))] = ([], 0)
            elif slot is None:
                continue
            elif choice == 1:
                tokens, front = live[slot]
                count = source.randint(front, len(tokens))
                live[cache.fork(slot, count)] = (tokens[:count], front)
            elif choice == 2:
                del live[slot]
                cache.release(slot, after())
            elif choice == 3:
                tokens, front = live[slot]
                front = source.randint(front, len(tokens))
                live[slot] = (tokens, front)
                cache.trim(slot, front=front, after=after())
            else:
                tokens, front = live[slot]
                have, more = len(tokens), source.randint(1, 90)
                if have + more <= cache.spec.max_tokens:
                    cache.step({slot: have + more})
                    new = [source.randint(1, 1000) for _ in range(more)]
                    # What this row gave up may lie there, and nothing of other requests.
                    there = set(keys[slot, have : have + more, 0, 0].tolist()) - {0.0}
                    assert there <= set(tokens[:front])
                    keys[slot, have : have + more] = np.array(new).reshape(more, 1, 1)
                    live[slot] = (tokens + new, front)
        except (OutOfMemory, OutOfSlots):
            pass
        for each, (tokens, front) in live.items():
            assert keys[each, front : len(tokens), 0, 0].tolist() == tokens[front:]
        used = sum(len(tokens) - front for tokens, front in live.values())
        assert cache.stats().bytes_used == used * 4 * 1024
        if not background:
            bench.check_books()
    running.put(None)
    thread.join()
    cache.drain()
    bench.check_books()
    for slot in list(live):
        cache.release(slot)
    live.clear()
    cache.drain()
    assert bench.check_books().pages_live == 0
