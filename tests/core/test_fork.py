# SPDX-License-Identifier: Apache-2.0
"""Slots made of others: what they share and how they part."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np
import pytest
from checked_cache import small_spec

from pyvattn import KVCache, LengthError, OutOfMemory, OutOfSlots, SlotError

pytest.importorskip("torch", reason="fork() copies with torch")


def test_a_fork_has_the_tokens_and_grows_apart(open_bench, driver_name):
    bench = open_bench(shares=True, name=driver_name, pages=1024)
    cache = bench.cache
    slot = cache.admit(150)
    for layer in range(2):
        for arrays in cache.layer(layer, np.from_dlpack):
            arrays[slot, :150] = np.arange(150).reshape(150, 1, 1)
    before = bench.check_books()
    fork = cache.fork(slot)
    assert cache.length(fork) == 150
    page = bench.page // 1024
    shared = 150 // page
    # All but the whole pages.
    own = bench.check_books().pages_live - before.pages_live
    assert own == before.pages_live - 4 * shared
    cache.step({slot: 151, fork: 151})
    for layer in range(2):
        for arrays in cache.layer(layer, np.from_dlpack):
            assert (arrays[fork, :150, 0, 0] == np.arange(150)).all()
            arrays[slot, 150] = 1
            arrays[fork, 150] = 2
            assert (arrays[slot, 150] == 1).all()
    cache.release(slot)
    cache.drain()
    for arrays in cache.layer(1, np.from_dlpack):
        assert (arrays[fork, :150, 0, 0] == np.arange(150)).all()
    cache.release(fork)


def test_four_samples_of_a_prompt_hold_little_more_than_one(open_bench):
    bench = open_bench(small_spec(guard_tokens=0), shares=True, pages=1024)
    slot = bench.cache.admit(1000)
    alone = bench.check_books().pages_live
    forks = [bench.cache.fork(slot) for _ in range(3)]
    assert bench.check_books().pages_live == alone + len(forks) * 4
    assert bench.cache.stats().bytes_wasted >= 0


def test_a_fork_may_have_fewer_tokens(open_bench):
    bench = open_bench(shares=True)
    slot = bench.cache.admit(200)
    bench.arrays()[0][slot, :200] = 5
    fork = bench.cache.fork(slot, 70)
    assert bench.cache.length(fork) == 70
    keys = bench.arrays()[0]
    assert (keys[fork, :70] == 5).all()
    bench.cache.step({fork: 200})
    assert not keys[fork, 70:200].any()
    empty = bench.cache.fork(slot, 0)
    assert bench.cache.length(empty) == 0


def test_what_a_fork_is_refused(open_bench):
    bench = open_bench(shares=True, pages=32)
    cache = bench.cache
    slot = cache.admit(200)
    before = bench.state()
    with pytest.raises(LengthError, match="cannot be forked at 201"):
        cache.fork(slot, 201)
    with pytest.raises(LengthError):
        cache.fork(slot, -1)
    assert bench.state() == before
    others = [cache.admit(0) for _ in range(3)]
    with pytest.raises(OutOfSlots):
        cache.fork(slot)
    cache.release(others.pop())
    fork = cache.fork(slot)
    for shared in (slot, fork):
        with pytest.raises(LengthError, match="shares its first 192 tokens"):
            cache.step({shared: 191})
        with pytest.raises(LengthError, match="shares its first 192 tokens"):
            cache.trim(shared, 100)
    cache.release(fork)
    with pytest.raises(SlotError):
        cache.fork(fork)


def test_a_fork_that_finds_no_memory_leaves_nothing_behind(open_bench):
    bench = open_bench(small_spec(guard_tokens=0), shares=True, pages=16)
    slot = bench.cache.admit(200)
    before = bench.state()
    with pytest.raises(OutOfMemory):
        bench.cache.fork(slot)
    bench.cache.can_admit(0)
    assert bench.state() == before
    bench.cache.fork(slot, 192)


def test_accounting_forks_without_memory_behind_it():
    with KVCache(
        small_spec(), device="cpu", memory="64MiB", layout="layer", accounting=True
    ) as cache:
        fork = cache.fork(cache.admit(100))
        assert cache.length(fork) == 100


@dataclass
class Request:
    tokens: list[int] = field(default_factory=list)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("background", [False, True])
def test_random_forks_read_what_an_unshared_cache_would(open_bench, seed, background):
    source = random.Random(seed)
    bench = open_bench(small_spec(max_slots=6), shares=True, pages=200, background=background)
    cache, keys = bench.cache, bench.arrays()[0]
    live: dict[object, Request] = {}

    def check():
        for slot, request in live.items():
            assert keys[slot, : len(request.tokens), 0, 0].tolist() == request.tokens

    for _ in range(150):
        choice = source.randrange(4)
        try:
            if choice == 0:
                live[cache.acquire(source.randrange(300))] = Request()
            elif choice == 1 and live:
                slot = source.choice(list(live))
                tokens = source.randint(0, len(live[slot].tokens))
                live[cache.fork(slot, tokens)] = Request(live[slot].tokens[:tokens])
            elif choice == 2 and live:
                slot = source.choice(list(live))
                del live[slot]
                cache.release(slot)
            elif live:
                slot, request = source.choice(list(live.items()))
                have, more = len(request.tokens), source.randint(1, 90)
                if have + more <= cache.spec.max_tokens:
                    cache.step({slot: have + more})
                    assert not keys[slot, have : have + more].any()
                    new = [source.randint(1, 1000) for _ in range(more)]
                    keys[slot, have : have + more] = np.array(new).reshape(more, 1, 1)
                    request.tokens += new
        except (OutOfMemory, OutOfSlots):
            pass
        check()
    cache.drain()
    bench.check_books()
    for slot in list(live):
        cache.release(slot)
    live.clear()
    cache.drain()
    assert bench.check_books().pages_live == 0
