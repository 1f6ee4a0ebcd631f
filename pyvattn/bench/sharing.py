# SPDX-License-Identifier: Apache-2.0
"""``bench sharing``: what forks and common prompts hold, and what a fork costs.

Pure accounting with the real allocator, so it runs anywhere. Without a tail guard: a
driver that backs it with private pages adds those to every request. With a device it times forks
and prompts there instead: :mod:`pyvattn.bench.sharing_served`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pyvattn.arguments import Settings, check_type
from pyvattn.bench.report import Measure
from pyvattn.bench.timing import summarise
from pyvattn.cache import KVCache, Slot
from pyvattn.prefix import PrefixIndex
from pyvattn.spec import CacheSpec

_MODEL = "Llama-3-8B in bfloat16, layout layer"


@dataclass(frozen=True)
class Options(Settings, least={"rounds": 3, "requests": 2, "common_tokens": 1}):
    """``rounds`` forks are timed.

    With a ``device``, ``"cuda:0"`` say, they are timed in a cache there, over ``driver``, and
    ``requests`` prompts with a model of random weights, with ``common_tokens`` in common and 200
    of their own. ``layers`` 0 are as many as the model has.
    """

    page_size: str = "64K"
    rounds: int = 21
    device: str = ""
    driver: str = "auto"
    model: str = "llama-3-8b"
    layers: int = 0
    requests: int = 64
    common_tokens: int = 4000


def measure(options: Options) -> Iterator[Measure]:
    """Yield every measure."""
    check_type("options", options, Options)
    if options.device:
        from pyvattn.bench.sharing_served import measure_served

        yield from measure_served(options)
        return
    note = f"{_MODEL}, {options.page_size} pages"
    yield Measure(
        "4 samples of 2,000 tokens, pages held / 4 requests alone",
        _samples(options) / _alone(options, 4, 2000),
        "times",
        at_most=0.30,
        note=note,
    )
    yield Measure(
        "64 requests that share 4,000 of 4,200 tokens, memory / unshared",
        _common_prompt(options) / _alone(options, 64, 4200),
        "times",
        at_most=0.08,
        note=note,
    )
    yield from _fork(options, note)


@contextmanager
def _cache(options: Options, slots: int, tokens: int) -> Iterator[KVCache]:
    spec = CacheSpec(32, 8, 128, max_slots=slots, max_tokens=tokens)
    with KVCache(
        spec,
        device="cpu",
        page_size=options.page_size,
        layout="layer",
        memory="64GiB",
        accounting=True,
        background=False,
        read_ahead=0,
    ) as cache:
        yield cache


def _alone(options: Options, requests: int, tokens: int) -> int:
    """Return the pages that requests hold which share nothing."""
    with _cache(options, requests, tokens) as cache:
        slots = [cache.admit(tokens) for _ in range(requests)]
        pages = cache.stats().pages_live
        for slot in slots:
            cache.release(slot)
        return pages


def _samples(options: Options) -> int:
    with _cache(options, 4, 2000) as cache:
        slots = [cache.admit(2000)]
        slots += [cache.fork(slots[0]) for _ in range(3)]
        return cache.stats().pages_live


def _common_prompt(options: Options) -> int:
    """Return the pages of requests with one beginning, admitted through an index."""
    with _cache(options, 64, 4200) as cache:
        index = PrefixIndex(cache)
        for request in range(64):
            prompt = [0] * 4000 + [request + 1] * 200
            slot, _ = index.admit(prompt)
            index.publish(slot, prompt)
        return cache.stats().pages_live


def _fork(options: Options, note: str) -> Iterator[Measure]:
    tokens = 32000
    with _cache(options, 2, tokens) as cache:
        slot = cache.admit(tokens)
        before = cache.stats().map_calls
        fork = cache.fork(slot)
        calls = cache.stats().map_calls - before
        cache.release(fork)
        times = [timed_fork(cache, slot) for _ in range(options.rounds)]
    name = "fork of 32,000 tokens"
    yield Measure(f"{name}, map calls", calls, "calls", note=note)
    yield Measure.of(
        f"{name}, host time", summarise(times), "ms", scale=1e3, note=f"{note}, no driver calls"
    )


def timed_fork(cache: KVCache, slot: Slot) -> float:
    """Return the seconds that a fork takes the host."""
    begin = time.perf_counter()
    fork = cache.fork(slot)
    seconds = time.perf_counter() - begin
    cache.release(fork)
    return seconds
