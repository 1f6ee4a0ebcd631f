"""``bench capacity``: how many requests of a trace fit into a device's memory.

Pure accounting with the real allocator, so it runs anywhere. Requests of the trace
are admitted in order, each at its full length (prompt and answer), until one does not
fit; the count is taken from many places of the trace.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from pyvattn.bench.report import Measure
from pyvattn.bench.timing import ratios, summarise
from pyvattn.errors import ConfigError, OutOfMemory
from pyvattn.replay import Allocator, ContiguousAllocator, PagedAllocator, StaticAllocator
from pyvattn.spec import CacheSpec
from pyvattn.traces import Request, Trace, read_trace, synthetic_trace
from pyvattn.units import parse_size

K, M = 1 << 10, 1 << 20
_PAGED = "paged, 16 tokens"
_FINE = "contiguous, 64K pages, layout layer"


@dataclass(frozen=True)
class Options:
    """``trace`` is a CSV file, or None for a synthetic trace; ``rounds`` places in it."""

    trace: str | None = None
    memory: str = "40GiB"
    rounds: int = 31


@dataclass(frozen=True)
class _Case:
    """An allocator, and the tokens of private guard that its driver adds to each request."""

    name: str
    make: Callable[[CacheSpec, int], Allocator]
    guard: int = 0


def measure(options: Options) -> Iterator[Measure]:
    """Yield every measure."""
    trace = read_trace(options.trace) if options.trace else synthetic_trace()
    memory = parse_size(options.memory, "memory")
    spec = CacheSpec(32, 8, 128, max_slots=4096, max_tokens=trace.longest)
    if memory < spec.token_bytes * trace.longest * 2:
        raise ConfigError(f"memory={options.memory!r} holds less than two of the longest requests")
    starts = random.Random(0).sample(range(len(trace.requests)), options.rounds)
    counts = {
        case.name: [_fitting(case, spec, memory, trace, start) for start in starts]
        for case in _cases(spec)
    }
    for name, values in counts.items():
        note = f"{trace.label}, Llama-3-8B in bfloat16, {options.memory}"
        yield Measure.of(name, summarise(values), "requests", note=note)
    for name, values in counts.items():
        if name == _PAGED:
            continue
        target = 0.97 if name == _FINE else None
        yield Measure.of(
            f"{name} / {_PAGED}", ratios(values, counts[_PAGED]), "times", at_least=target
        )


def _cases(spec: CacheSpec) -> list[_Case]:
    def contiguous(page: int, layout: str) -> Callable[[CacheSpec, int], Allocator]:
        return lambda spec, memory: ContiguousAllocator(spec, memory, page, layout)

    guard = spec.guard_tokens
    return [
        _Case("static", StaticAllocator),
        _Case(_PAGED, PagedAllocator),
        _Case(_FINE, contiguous(64 * K, "layer")),
        _Case("contiguous, 2M pages, layout token", contiguous(2 * M, "token")),
        _Case("contiguous, 2M pages, layout layer", contiguous(2 * M, "layer")),
        _Case("cumem, 2M pages, layout token", contiguous(2 * M, "token"), guard),
        _Case("cumem, 2M pages, layout layer", contiguous(2 * M, "layer"), guard),
    ]


def _fitting(case: _Case, spec: CacheSpec, memory: int, trace: Trace, start: int) -> float:
    if case.guard:
        spec = replace(spec, max_tokens=spec.max_tokens + case.guard)
    allocator = case.make(spec, memory)
    try:
        count = 0
        for request in _from(trace, start):
            tokens = request.prompt + request.generated + case.guard
            if not allocator.can_admit(tokens):
                break
            row = allocator.admit(tokens)
            try:
                allocator.step(array("q", [row]), array("q", [tokens]))
            except OutOfMemory:
                break
            count += 1
        return float(count)
    finally:
        allocator.close()


def _from(trace: Trace, start: int) -> Iterator[Request]:
    """Go round the trace once, from ``start``."""
    yield from trace.requests[start:]
    yield from trace.requests[:start]
