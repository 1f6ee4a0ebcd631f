# SPDX-License-Identifier: Apache-2.0
"""``bench reuse``: driver calls for each admitted request, in a fresh cache and once warm.

Pure accounting with the real allocator, so it runs anywhere. The load is constant: as
many requests as ``live`` are always in the cache, and the next of the trace joins where
one ends. *Cold* means that every request gets a slot that was never used before, so that it
maps all its pages and nothing is unmapped; *warm* is the second half of the requests in
one cache, maps and unmaps together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from os import PathLike

from pyvattn.arguments import Settings, check_type
from pyvattn.bench.report import Measure
from pyvattn.errors import ConfigError
from pyvattn.replay import ContiguousAllocator, replay
from pyvattn.spec import CacheSpec
from pyvattn.traces import Trace, read_trace, synthetic_trace

K, M = 1 << 10, 1 << 20
_CASES = (("layer", 64 * K), ("layer", 2 * M), ("token", 2 * M))
# Memory over what live requests need on average. Tight: what they need at most.
_SLACKS = {"tight": None, "+10 %": 1.1, "+25 %": 1.25, "+50 %": 1.5}
_JUDGED = "+50 %"
_TARGET = 0.1


@dataclass(frozen=True)
class Options(Settings, least={"requests": 4, "read_ahead": 0}):
    """``trace`` is a CSV file, or None for a synthetic trace.

    ``live`` requests at a time, ``requests`` in all; ``read_ahead`` as for
    :class:`pyvattn.KVCache`.
    """

    trace: str | PathLike[str] | None = None
    live: int = 256
    requests: int = 8000
    read_ahead: int = 128


@dataclass(frozen=True)
class _Counts:
    """Calls for each request admitted in the window, and pages in each map call."""

    maps: float
    unmaps: float
    extent_pages: float
    mean_held: float
    peak_held: int
    mean_live: float

    @property
    def calls(self) -> float:
        return self.maps + self.unmaps


class _Load(ContiguousAllocator):
    """Admits so many requests at a time, and counts between two admissions."""

    def __init__(
        self,
        spec: CacheSpec,
        memory: int,
        case: tuple[str, int],
        options: Options,
        window: tuple[int, int],
        fresh_slots: bool = False,
    ) -> None:
        layout, page_size = case
        super().__init__(spec, memory, page_size, layout, read_ahead=options.read_ahead)
        self._most = options.live
        self._window = window
        self._fresh_slots = fresh_slots
        self._admitted = self._live = 0
        self._marks: list[tuple[int, int, int]] = []
        self._steps = self._live_sum = self._full_steps = self._held_sum = self._held_peak = 0

    def can_admit(self, tokens: int) -> bool:
        return self._live < self._most and super().can_admit(tokens)

    def admit(self, tokens: int) -> int:
        if self._admitted in self._window:
            stats = self._cache.stats()
            self._marks.append((stats.map_calls, stats.unmap_calls, stats.map_bytes))
        self._admitted += 1
        self._live += 1
        # Nothing fits a request of no tokens better than a slot without pages.
        return super().admit(0 if self._fresh_slots else tokens)

    def release(self, row: int) -> None:
        self._live -= 1
        super().release(row)

    def memory(self) -> tuple[int, int]:
        held, mapped = super().memory()
        first, last = self._window
        if first <= self._admitted < last:
            self._steps += 1
            self._live_sum += self._live
        if self._live == self._most:
            self._full_steps += 1
            self._held_sum += held
            self._held_peak = max(self._held_peak, held)
        return held, mapped

    def counts(self) -> _Counts:
        maps, unmaps, mapped = (b - a for a, b in zip(*self._marks, strict=True))
        requests = self._window[1] - self._window[0]
        page_size = self._cache.page_size
        return _Counts(
            maps=maps / requests,
            unmaps=unmaps / requests,
            extent_pages=mapped / page_size / maps if maps else 0.0,
            mean_held=self._held_sum / max(self._full_steps, 1),
            peak_held=self._held_peak,
            mean_live=self._live_sum / max(self._steps, 1),
        )


def measure(options: Options) -> Iterator[Measure]:
    """Yield every measure."""
    check_type("options", options, Options)
    whole = read_trace(options.trace) if options.trace else synthetic_trace(options.requests)
    trace = replace(whole, requests=whole.requests[: options.requests])
    if len(trace.requests) < 4 * options.live:
        raise ConfigError(
            f"{len(trace.requests)} requests are too few for {options.live} at a time: use a "
            f"longer trace, or live={len(trace.requests) // 4}"
        )
    for case in _CASES:
        yield from _case(case, options, trace)


def _case(case: tuple[str, int], options: Options, trace: Trace) -> Iterator[Measure]:
    name = ContiguousAllocator.name(_spec(trace, 1), case[1], case[0])
    plain = _cold(case, replace(options, read_ahead=0), trace)
    cold = _cold(case, options, trace)
    load = f"{trace.label}, {options.live} requests at a time, Llama-3-8B in bfloat16"
    yield Measure(f"{name}: cold, page by page", plain.calls, "calls/request", note=load)
    yield Measure(
        f"{name}: cold, read ahead",
        cold.calls,
        "calls/request",
        note=f"up to {options.read_ahead} tokens ahead",
    )
    for slack, factor in _SLACKS.items():
        memory = plain.peak_held if factor is None else int(plain.mean_held * factor)
        warm = _run(_spec(trace, 2 * options.live), memory, case, options, trace)
        note = (
            f"{warm.maps:.3g} maps + {warm.unmaps:.3g} unmaps, {warm.calls / plain.calls:.3f} of "
            f"page by page; {memory / 2**30:.3g} GiB, {warm.mean_live:.4g} requests live"
        )
        title = f"{name}, memory {slack}"
        yield Measure(f"{title}: warm", warm.calls, "calls/request", note=note)
        yield Measure(
            f"{title}: warm / cold",
            warm.calls / cold.calls,
            "times",
            at_most=_TARGET if slack == _JUDGED else None,
        )
        yield Measure(f"{title}: mean extent, warm", warm.extent_pages, "pages")


def _spec(trace: Trace, slots: int) -> CacheSpec:
    return CacheSpec(32, 8, 128, max_slots=slots, max_tokens=trace.longest)


def _cold(case: tuple[str, int], options: Options, trace: Trace) -> _Counts:
    spec = _spec(trace, len(trace.requests))
    memory = spec.token_bytes * sum(r.prompt + r.generated for r in trace.requests)
    # Room for the last page of each row, and for what is read ahead.
    room = 2 * options.read_ahead * spec.token_bytes
    room += spec.geometry(*case).arenas * case[1]
    return _run(spec, memory + len(trace.requests) * room, case, options, trace, fresh_slots=True)


def _run(
    spec: CacheSpec,
    memory: int,
    case: tuple[str, int],
    options: Options,
    trace: Trace,
    fresh_slots: bool = False,
) -> _Counts:
    count = len(trace.requests)
    # When the last have joined, the load falls.
    window = (count // 2, count - options.live)
    load = _Load(spec, memory, case, options, window, fresh_slots)
    try:
        replay(trace, spec, load, step_seconds=None)
        return load.counts()
    finally:
        load.close()
