# SPDX-License-Identifier: Apache-2.0
"""``bench core``: the core's bookkeeping, its growth, a replay, and its own memory.

Nothing here touches KV memory: the cache runs in accounting mode, so that the
figures are the core's own.
"""

from __future__ import annotations

import os
import random
import time
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from pyvattn import _native
from pyvattn.arguments import Settings, check_type
from pyvattn.bench.block_table import BlockTable
from pyvattn.bench.core_steps import large_steps, turnover
from pyvattn.bench.report import Measure
from pyvattn.bench.timing import interleave, ratios, summarise
from pyvattn.cache import KVCache
from pyvattn.errors import OutOfMemory
from pyvattn.replay import ContiguousAllocator, replay
from pyvattn.spec import CacheSpec
from pyvattn.traces import read_trace, synthetic_trace

K, M, G = 1 << 10, 1 << 20, 1 << 30

_TOKENS = 1000
_SLOT_COUNTS = (64, 256, 1024, 4096)


@dataclass(frozen=True)
class Options(Settings, least={"rounds": 3}):
    """``trace`` is a CSV file, or None for a synthetic trace; ``rounds`` of every timing."""

    trace: str | PathLike[str] | None = None
    rounds: int = 31


def measure(options: Options) -> Iterator[Measure]:
    """Yield every measure."""
    check_type("options", options, Options)
    yield from _step(options)
    yield from _growth()
    yield from large_steps()
    yield from turnover()
    yield from _bookkeeping()
    yield from _replay(options)


def _model(max_slots: int, max_tokens: int = 16384) -> CacheSpec:
    """Return the shape of Llama-3-8B."""
    return CacheSpec(32, 8, 128, max_slots=max_slots, max_tokens=max_tokens)


def _open(spec: CacheSpec, layout: str, page_size: int, memory: int) -> KVCache:
    return KVCache(
        spec,
        device="cpu",
        driver="host",
        page_size=page_size,
        layout=layout,
        memory=memory,
        background=False,
        accounting=True,
    )


class _Steady:
    """``count`` live requests whose lengths go back and forth within a page and a block."""

    def __init__(self, count: int) -> None:
        spec = _model(count)
        self.cache = _open(spec, "layer", 64 * K, 2 * count * _TOKENS * spec.token_bytes)
        slots = [self.cache.acquire(_TOKENS) for _ in range(count)]
        lengths = (_TOKENS, _TOKENS + 1)
        self.by_slot = [dict.fromkeys(slots, length) for length in lengths]
        self.rows = array("q", map(int, slots))
        self.arrays = [array("q", [length]) * count for length in lengths]
        self.table = BlockTable(2 * count * _TOKENS // 16, spec.max_tokens)
        for request in range(count):
            self.table.acquire(request)
        self.by_request = [dict.fromkeys(range(count), length) for length in lengths]

    def alternatives(self) -> dict[str, Any]:
        def with_mapping() -> None:
            for lengths in self.by_slot:
                self.cache.step(lengths)

        def with_arrays() -> None:
            for lengths in self.arrays:
                self.cache.step_array(self.rows, lengths)

        def with_block_table() -> None:
            for lengths in self.by_request:
                self.table.step(lengths)

        return {"step": with_mapping, "step_array": with_arrays, "block table": with_block_table}


def _step(options: Options) -> Iterator[Measure]:
    per_slot: dict[str, list[float]] = {"step": [], "step_array": []}
    for count in _SLOT_COUNTS:
        steady = _Steady(count)
        with steady.cache as cache:
            steady.alternatives()["step"]()
            before = cache.stats().map_calls
            # Each call of an alternative makes two steps.
            seconds = {
                name: [value / 2 for value in values]
                for name, values in interleave(
                    steady.alternatives(), rounds=options.rounds, clock=time.thread_time_ns
                ).items()
            }
            assert cache.stats().map_calls == before, "a steady step has mapped"
        for name, values in seconds.items():
            yield Measure.of(f"{name}, {count} slots", summarise(values), "µs", scale=1e6)
        for name, found in per_slot.items():
            found.append(summarise(seconds[name]).median / count)
            yield Measure.of(
                f"block table / {name}, {count} slots",
                ratios(seconds["block table"], seconds[name]),
                "times",
                at_least=20 if count == 1024 else None,
                note="paired rounds, CPU time of the calling thread",
            )
    for name, found in per_slot.items():
        yield Measure(
            f"{name}: cost a slot, 4,096 slots / 64 slots",
            found[-1] / found[0],
            "times",
            at_most=1.5,
            note="flat is about 1 or, as the call's own cost spreads, less",
        )


def _growth() -> Iterator[Measure]:
    spec = _model(256)
    for page_size, name in ((64 * K, "64K"), (2 * M, "2M")):
        with _open(spec, "token", page_size, 64 * G) as cache:
            title = f"map calls to admit 4,096 tokens, layout token, {name}"
            fresh = _calls_to_admit(cache)
            yield Measure(f"{title}, fresh cache", fresh, "calls/arena", at_most=2)
            _churn(cache, random.Random(1))
            used = [_calls_to_admit(cache) for _ in range(100)]
            yield Measure.of(
                f"{title}, after churn",
                summarise(used),
                "calls/arena",
                note="a slot that has pages of an earlier request maps only the rest",
            )
    yield Measure(
        "bytes mapped twice in a churn",
        _bytes_mapped_twice(),
        "bytes",
        at_most=0,
        note="from the trace of the driver's calls",
    )


def _calls_to_admit(cache: KVCache) -> float:
    before = cache.stats().map_calls
    slot = cache.acquire(4096)
    cache.step({slot: 4096})
    calls = cache.stats().map_calls - before
    cache.release(slot)
    return calls / cache.geometry.arenas


def _churn(cache: KVCache, source: random.Random, steps: int = 3000) -> None:
    """Let requests of random lengths come, grow and go; none is left at the end.

    Where memory is short, somebody goes.
    """
    live: dict[Any, int] = {}
    for _ in range(steps):
        if live and (len(live) == cache.spec.max_slots or source.random() < 0.45):
            slot = source.choice(list(live))
            del live[slot]
            cache.release(slot)
        else:
            tokens = source.randint(1, 2000)
            live[cache.acquire(tokens)] = tokens
        live = {slot: tokens + 1 for slot, tokens in live.items()}
        while not _try_step(cache, live):
            slot = source.choice(list(live))
            del live[slot]
            cache.release(slot)
    for slot in live:
        cache.release(slot)


def _try_step(cache: KVCache, lengths: dict[Any, int]) -> bool:
    try:
        cache.step(lengths)
    except OutOfMemory:
        return False
    return True


def _bytes_mapped_twice() -> int:
    driver = _native.make_driver("host-accounting", 64 * K)
    trace = _native.TraceAdaptor(driver, capacity=1 << 20)
    mapped: set[int] = set()
    twice = 0
    # Little memory, so that pages are taken from slot to slot.
    with KVCache.on_driver(
        _model(64), trace, layout="token", memory=4 * G, background=False
    ) as cache:
        _churn(cache, random.Random(2))
        for record in trace.records():
            pages = range(record.address, record.address + record.length, 64 * K)
            if record.operation == "map":
                twice += sum(page in mapped for page in pages)
                mapped.update(pages)
            elif record.operation == "unmap":
                mapped.difference_update(pages)
    return twice * 64 * K


def _bookkeeping() -> Iterator[Measure]:
    spec = _model(4096)
    with _open(spec, "layer", 64 * K, 512 * G) as cache:
        empty = cache.stats()
        yield Measure(
            "bookkeeping for each slot, nothing mapped",
            empty.bookkeeping_bytes / spec.max_slots,
            "bytes",
            at_most=1024,
        )
        resident = _resident_bytes()
        live = {cache.acquire(_TOKENS): _TOKENS for _ in range(2048)}
        cache.step(live)
        full = cache.stats()
        blocks = (full.pages_mapped - empty.pages_mapped) // cache.geometry.arenas
        yield Measure(
            "bookkeeping for each mapped block",
            (full.bookkeeping_bytes - empty.bookkeeping_bytes) / blocks,
            "bytes",
            at_most=20,
            note=f"{blocks} blocks of {cache.geometry.arenas} pages, as the core counts its "
            "containers",
        )
        yield Measure(
            "growth of resident memory for each mapped block",
            (_resident_bytes() - resident) / blocks,
            "bytes",
            note="as the operating system sees it, the step's own lists included",
        )


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _replay(options: Options) -> Iterator[Measure]:
    trace = read_trace(options.trace) if options.trace else synthetic_trace()
    spec = _model(256, trace.longest)
    allocator = ContiguousAllocator(spec, 8 * G, 64 * K, "layer")
    result = replay(trace, spec, allocator)
    allocator.close()
    title = f"replay of {len(trace.requests)} requests, {trace.label}, layout layer, 64K, 8 GiB"
    yield Measure(
        f"{title}: time",
        result.wall_seconds,
        "s",
        at_most=None if trace.synthetic else 60,
        note=f"{result.steps} steps",
    )
    page_in_each_arena = 64 * K * spec.geometry("layer", 64 * K).arenas
    yield Measure(
        f"{title}: mean waste of a live request",
        result.waste_bytes / page_in_each_arena,
        "pages/arena",
        at_most=1,
        note=f"{result.waste_bytes / 1e6:.3g} MB, {result.waste_tokens:.3g} tokens",
    )
