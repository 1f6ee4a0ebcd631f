# SPDX-License-Identifier: Apache-2.0
"""The part of ``bench core`` about large steps, and about requests that come and go.

In accounting mode, like the rest: what is timed is the core's own work, by the CPU time of
the thread that calls.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial

from pyvattn.bench.report import Measure
from pyvattn.bench.timing import summarise
from pyvattn.cache import KVCache
from pyvattn.spec import CacheSpec
from pyvattn.stats import Stats

K, G, T = 1 << 10, 1 << 30, 1 << 40
_PAGE = 64 * K
# Tokens of Llama-3-8B's K, or V, in one page.
_BLOCK_TOKENS = 32
_REQUEST = 1000
_ROUNDS = 5
_CALLS = 300


def open_cache(
    slots: int,
    memory: int,
    *,
    layers: int = 32,
    max_tokens: int = 16384,
    background: bool = False,
    read_ahead: int = 0,
) -> KVCache:
    """Open a cache of Llama-3-8B's heads in layout ``layer`` that counts pages only."""
    return KVCache(
        CacheSpec(layers, 8, 128, max_slots=slots, max_tokens=max_tokens),
        device="cpu",
        driver="host",
        page_size=_PAGE,
        layout="layer",
        memory=memory,
        background=background,
        read_ahead=read_ahead,
        accounting=True,
    )


def cpu_seconds(call: Callable[[], object]) -> float:
    """Return the CPU time that a call takes of this thread."""
    began = time.thread_time_ns()
    call()
    return (time.thread_time_ns() - began) / 1e9


def large_steps() -> Iterator[Measure]:
    """Yield what one step of a million tokens costs, and one that grows 4,096 slots."""
    for layers, at_most in ((32, 10), (128, 30)):
        for requests, tokens in ((1000, _REQUEST), (1, 1_000_000)):
            seconds = [_million(layers, requests, tokens) for _ in range(_ROUNDS)]
            yield Measure.of(
                f"one million tokens in one step, {requests} slots, {layers} layers",
                summarise(seconds),
                "ms",
                scale=1e3,
                at_most=at_most,
                note="CPU time of the calling thread",
            )
    grown = [_grow_by_one_block() for _ in range(_ROUNDS)]
    yield Measure.of(
        "4,096 slots grow by one block, 32 layers",
        summarise([seconds for seconds, _, _ in grown]),
        "ms",
        scale=1e3,
        at_most=10,
        note=f"read_ahead={2 * _BLOCK_TOKENS}; CPU time of the calling thread",
    )
    _, entries, run = grown[0]
    yield Measure("4,096 slots grow: map entries", entries, "for each slot and arena", at_most=1)
    yield Measure("4,096 slots grow: mean run", run, "blocks", at_least=2)


def _million(layers: int, requests: int, tokens: int) -> float:
    with open_cache(requests, 4 * T, layers=layers, max_tokens=max(16384, tokens)) as cache:
        lengths = {cache.acquire(tokens): tokens for _ in range(requests)}
        return cpu_seconds(lambda: cache.step(lengths))


def _grow_by_one_block() -> tuple[float, float, float]:
    """Return seconds, map entries for each slot and arena, and blocks of an entry."""
    slots = 4096
    with open_cache(slots, 4 * T, read_ahead=2 * _BLOCK_TOKENS) as cache:
        live = [cache.acquire(_BLOCK_TOKENS) for _ in range(slots)]
        cache.step(dict.fromkeys(live, _BLOCK_TOKENS))
        before = cache.stats()
        backed = before.pages_mapped // cache.geometry.arenas // slots * _BLOCK_TOKENS
        lengths = dict.fromkeys(live, backed + 1)
        seconds = cpu_seconds(lambda: cache.step(lengths))
        after = cache.stats()
        entries = after.map_calls - before.map_calls
        run = (after.map_bytes - before.map_bytes) / entries / _PAGE
        return seconds, entries / slots / cache.geometry.arenas, run


def turnover() -> Iterator[Measure]:
    """Yield what ``acquire``, ``release`` and a step that reclaims cost, by number of slots."""
    for slots in (1024, 16384):
        released, acquired = _come_and_go(slots)
        for name, seconds in (("release", released), ("acquire", acquired)):
            yield Measure.of(
                f"{name}, {slots} slots",
                summarise(seconds),
                "µs",
                scale=1e6,
                at_most=3,
                note="beside the mapper thread, a quarter of the slots free; CPU time of the "
                "calling thread, less the clock's",
            )
    few, many = (summarise(_reclaim(slots)) for slots in (1024, 16384))
    yield Measure.of("a step that reclaims, 1,024 slots", few, "µs", scale=1e6)
    yield Measure.of("a step that reclaims, 16,384 slots", many, "µs", scale=1e6)
    yield Measure(
        "a step that reclaims, 16,384 slots / 1,024 slots",
        many.median / few.median,
        "times",
        at_most=2,
        note="independent of the number of slots is about 1; caches are colder with many",
    )


def _come_and_go(slots: int) -> tuple[list[float], list[float]]:
    """Return seconds of calls of release and of acquire, less what the clock takes itself.

    The thread does not wait for the mapper thread between calls, as no engine does. Where it
    did (``drain`` before each call), both calls took two to four times as long; why was not
    found.
    """
    clock = summarise([cpu_seconds(_nothing) for _ in range(_CALLS)]).median
    released, acquired = [], []
    with open_cache(slots, 4 * T, background=True) as cache:
        live = deque(cache.acquire(_REQUEST) for _ in range(slots))
        cache.step(dict.fromkeys(live, _REQUEST))
        for _ in range(slots // 4):
            cache.release(live.popleft())
        cache.drain()
        for _ in range(_CALLS):
            oldest = live.popleft()
            released.append(cpu_seconds(partial(cache.release, oldest)) - clock)
            began = time.thread_time_ns()
            slot = cache.acquire(_REQUEST)
            acquired.append((time.thread_time_ns() - began) / 1e9 - clock)
            cache.step({slot: _REQUEST})
            live.append(slot)
    return released, acquired


def _nothing() -> None:
    """Take no time of its own."""


def _reclaim(slots: int) -> list[float]:
    """Return seconds of steps that each take one released slot's blocks."""
    tokens = 2 * _BLOCK_TOKENS
    with open_cache(slots + 1, slots * 2 * 64 * _PAGE) as cache:
        live = [cache.acquire(tokens) for _ in range(slots)]
        cache.step(dict.fromkeys(live, tokens))
        for slot in live:
            cache.release(slot)
        grows = cache.acquire(0)
        before = cache.stats()
        assert before.pages_free == 0, "the pool must be empty"
        seconds = [cpu_seconds(partial(cache.step, {grows: n * tokens})) for n in range(1, 100)]
        assert _took(before, cache.stats()) == 99, "every step must reclaim"
        return seconds


def _took(before: Stats, after: Stats) -> int:
    return after.unmap_calls - before.unmap_calls and (
        after.reclaimed_pages - before.reclaimed_pages
    ) // (2 * 64)
