# SPDX-License-Identifier: Apache-2.0
"""``bench capacity``: how many requests of a trace fit into a device's memory.

Pure accounting with the real allocator, so it runs anywhere. Requests of the trace
are admitted in order, each at its full length (prompt and answer), until one does not
fit; the count is taken from many places of the trace.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike

from pyvattn.arguments import Settings, check_type
from pyvattn.bench.report import Measure
from pyvattn.bench.timing import ratios, summarise
from pyvattn.errors import ConfigError, OutOfMemory
from pyvattn.geometry import check_page_size
from pyvattn.planner import default_costs, guarded_for, tlb
from pyvattn.replay import Allocator, ContiguousAllocator, PagedAllocator, StaticAllocator
from pyvattn.spec import CacheSpec
from pyvattn.traces import Request, Trace, read_trace, synthetic_trace
from pyvattn.units import format_page_size, parse_size

_PAGED = PagedAllocator.name
# FlashAttention-3 by a table of the rows, which needs no guard, and without one.
_KERNELS = ("flash-attn-3-paged", "flash-attn-3")
_AT_LEAST = {
    ", 64K pages, layout layer": 0.97,
    "cumem, 2M pages, layout token, flash-attn-3-paged": 0.98,
}


@dataclass(frozen=True)
class Options(Settings, least={"rounds": 3}):
    """``trace`` is a CSV file, or None for a synthetic trace; ``rounds`` places in it.

    ``driver`` and ``page_size`` choose what is counted besides static and paged: by
    default pages of 64K and 2M, and ``cumem`` with the tail guard of each kernel.
    """

    trace: str | PathLike[str] | None = None
    memory: str = "40GiB"
    rounds: int = 31
    driver: str | None = None
    page_size: str | None = None


@dataclass(frozen=True)
class _Case:
    """An allocator, and the tokens of private guard that its driver adds to each request."""

    name: str
    make: Callable[[CacheSpec, int], Allocator]
    guard: int = 0


def measure(options: Options) -> Iterator[Measure]:
    """Yield every measure."""
    check_type("options", options, Options)
    trace = read_trace(options.trace) if options.trace else synthetic_trace()
    memory = parse_size(options.memory, "memory")
    spec = CacheSpec(32, 8, 128, max_slots=4096, max_tokens=trace.longest)
    if memory < spec.token_bytes * trace.longest * 2:
        raise ConfigError(f"memory={options.memory!r} holds less than two of the longest requests")
    starts = random.Random(0).sample(range(len(trace.requests)), options.rounds)
    counts = {
        case.name: [_fitting(case, spec, memory, trace, start) for start in starts]
        for case in [*_BASES, *_cases(spec, options)]
    }
    for name, values in counts.items():
        note = f"{trace.label}, Llama-3-8B in bfloat16, {options.memory}"
        yield Measure.of(name, summarise(values), "requests", note=note)
    for name, values in counts.items():
        if name == _PAGED:
            continue
        target = next((least for end, least in _AT_LEAST.items() if name.endswith(end)), None)
        yield Measure.of(
            f"{name} / {_PAGED}", ratios(values, counts[_PAGED]), "times", at_least=target
        )


_BASES = (_Case(StaticAllocator.name, StaticAllocator), _Case(_PAGED, PagedAllocator))


def _cases(spec: CacheSpec, options: Options) -> Iterator[_Case]:
    """Yield the contiguous ones: without a guard, then with what each kernel needs on a driver."""
    named = [options.page_size] if options.page_size is not None else None
    if options.driver is None:
        yield from _of_pages("contiguous", named or ("64K", "2M"), 0)
        yield from _of_kernels("cumem", ("2M",), spec)
        return
    costs = default_costs(options.driver)
    sizes = named or [format_page_size(size) for size in costs.page_sizes]
    if costs.private_guard:
        yield from _of_kernels(options.driver, sizes, spec)
    else:
        yield from _of_pages(options.driver, sizes, 0)


def _of_kernels(name: str, sizes: Sequence[str], spec: CacheSpec) -> Iterator[_Case]:
    for kernel in _KERNELS:
        guard = guarded_for(spec, kernel).guard_tokens
        yield from _of_pages(name, sizes, guard, f", {kernel}")


def _of_pages(name: str, sizes: Iterable[str], guard: int, kernel: str = "") -> Iterator[_Case]:
    for size in sizes:
        # No cache takes layout token on smaller entries: kernels would crawl.
        layouts = ("token", "layer") if check_page_size(size) >= tlb.LARGE_ENTRY else ("layer",)
        for layout in layouts:
            tail = f", guard of {guard} tokens" if guard else ""
            yield _Case(
                f"{name}, {size} pages, layout {layout}{kernel}{tail}",
                partial(_contiguous, check_page_size(size), layout),
                guard,
            )


def _contiguous(page: int, layout: str, spec: CacheSpec, memory: int) -> Allocator:
    return ContiguousAllocator(spec, memory, page, layout)


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
