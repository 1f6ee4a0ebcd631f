# SPDX-License-Identifier: Apache-2.0
"""Which slot a request gets, and what released slots keep."""

from __future__ import annotations

import pytest
from checked_cache import small_spec

from pyvattn import ConfigError, KVCache, LengthError, OutOfSlots, SpecError


def run_request(cache, tokens):
    slot = cache.acquire(tokens)
    cache.step({slot: tokens})
    cache.release(slot)
    return slot.index


def three_sizes(cache):
    """Leave three free slots with 1, 4 and 8 row pages; return their rows."""
    live = [cache.acquire() for _ in range(3)]
    cache.step(dict(zip(live, (64, 256, 512), strict=True)))
    for slot in live:
        cache.release(slot)
    return [slot.index for slot in live]


@pytest.mark.parametrize(("tokens", "which"), [(10, 0), (64, 0), (65, 1), (256, 1), (257, 2)])
def test_acquire_takes_the_smallest_that_suffices(open_bench, tokens, which):
    cache = open_bench().cache
    rows = three_sizes(cache)
    assert cache.acquire(tokens).index == rows[which]


def test_acquire_takes_the_largest_where_none_suffices(open_bench):
    cache = open_bench().cache
    rows = three_sizes(cache)
    assert cache.acquire(1000).index == rows[2]


def test_a_warm_cache_maps_nothing_for_a_request_like_the_last(open_bench):
    cache = open_bench().cache
    run_request(cache, 500)
    calls = cache.stats().map_calls
    for _ in range(20):
        run_request(cache, 500)
    assert cache.stats().map_calls == calls


def test_pages_of_released_slots_serve_those_that_need_them(open_bench):
    bench = open_bench(pages=64)
    run_request(bench.cache, 1024)
    assert bench.cache.stats().pages_retained == 64
    a, b = bench.cache.acquire(64), bench.cache.acquire(64)
    bench.cache.step({a: 500, b: 500})
    s = bench.check_books()
    assert s.pages_live == 64
    assert s.reclaimed_pages > 0


def test_the_longest_released_gives_first(open_bench):
    bench = open_bench(pages=64)
    old, new = bench.cache.acquire(), bench.cache.acquire()
    bench.cache.step({old: 320, new: 320})
    bench.cache.release(old)
    bench.cache.release(new)
    # 24 pages are free: one page in each arena must come from a released slot.
    other = bench.cache.acquire(960)
    assert other.index in (old.index, new.index)
    bench.cache.step({other: 1024})
    assert bench.check_books().pages_retained == 0


def test_the_longest_tail_of_many_live_slots_gives_first(open_bench):
    """What live slots inherited is looked at in more than a few of them."""
    slots = 200
    bench = open_bench(small_spec(max_slots=slots), pages=4 * (2 * (slots - 1) + 16))
    cache = bench.cache
    live = [cache.acquire() for _ in range(slots)]
    cache.step({slot: 1024 if slot is live[-1] else 128 for slot in live})
    for slot in live:
        cache.release(slot)
    # Every row has a request of one page, the longest row the last of them.
    short = [cache.acquire(1) for _ in range(slots)]
    cache.step(dict.fromkeys(short, 1))
    cache.step({short[0]: 15 * 64})
    taken_from = [slot for slot, pages in cache.live_pages().items() if pages == 4]
    assert [slot.index for slot in taken_from] == [live[-1].index]


def test_no_slot_is_left(open_bench):
    cache = open_bench().cache
    slots = [cache.acquire() for _ in range(4)]
    with pytest.raises(OutOfSlots, match=r"all 4 slots are live.*max_slots"):
        cache.acquire()
    cache.release(slots[2])
    assert cache.acquire().index == slots[2].index


@pytest.mark.parametrize("tokens", [-1, 1025])
def test_acquire_refuses_what_no_row_holds(open_bench, tokens):
    with pytest.raises(LengthError):
        open_bench().cache.acquire(tokens)


def test_can_admit_counts_slots(open_bench):
    cache = open_bench().cache
    slots = []
    for _ in range(4):
        assert cache.can_admit(1)
        slots.append(cache.acquire())
    assert not cache.can_admit(1)


def test_can_admit_counts_pages(open_bench):
    cache = open_bench(pages=32).cache
    assert cache.can_admit(512)
    assert not cache.can_admit(513)
    slot = cache.acquire()
    cache.step({slot: 256})
    assert cache.can_admit(256)
    assert not cache.can_admit(257)
    cache.release(slot)
    assert cache.can_admit(512)


def test_can_admit_is_what_step_then_does(open_bench):
    cache = open_bench(pages=40).cache
    a = cache.acquire()
    cache.step({a: 300})
    largest = max(n for n in range(1025) if cache.can_admit(n))
    cache.step({cache.acquire(largest): largest})


def test_slot_stands_for_its_row(open_bench):
    cache = open_bench().cache
    slot = cache.acquire()
    assert range(4)[slot] == slot.index == int(slot)
    assert repr(slot) == f"Slot({slot.index})"


@pytest.mark.parametrize(
    "changes",
    [{"layers": 0}, {"kv_heads": -1}, {"head_dim": 1.5}, {"dtype": "int4"}, {"max_slots": 1 << 40}],
)
def test_impossible_specs(changes):
    with pytest.raises(SpecError, match=str(next(iter(changes.values())))):
        small_spec(**changes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"driver": "cuda12"}, "'cuda12' is unknown"),
        ({"page_size": "3K"}, "3K"),
        ({"page_size": "4M"}, "4M"),
        ({"layout": "paged"}, "'paged' is unknown"),
        ({"device": "tpu"}, "'tpu' is unknown"),
        ({"memory": "lots"}, "'lots' is not a size"),
        ({"memory": "4K"}, "holds not one page"),
        ({"driver": "cumem"}, "for a CUDA device"),
        ({"device": "cuda", "driver": "host"}, "device='cpu'"),
    ],
)
def test_unknown_choices(options, message):
    from pyvattn import KVCache

    with pytest.raises(ConfigError, match=message):
        KVCache(small_spec(), **{"device": "cpu", "memory": "1GiB", **options})


@pytest.mark.parametrize("tokens", [-1, 2**31, "most"])
def test_an_impossible_read_ahead_is_refused(tokens):
    with pytest.raises(ConfigError, match=f"read_ahead={tokens!r}"):
        KVCache(small_spec(), device="cpu", memory="16MiB", read_ahead=tokens)
