# SPDX-License-Identifier: Apache-2.0
"""One trace through many allocators: page sizes x layouts, static, and paged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from pyvattn.errors import ConfigError
from pyvattn.replay.allocator import Allocator, PagedAllocator, StaticAllocator
from pyvattn.replay.contiguous import ContiguousAllocator
from pyvattn.replay.result import Result
from pyvattn.replay.scheduler import replay
from pyvattn.spec import CacheSpec
from pyvattn.traces import Trace


@dataclass(frozen=True)
class Case:
    """An allocator to be made, with the name that its result will have."""

    label: str
    make: Callable[[], Allocator]


def cases(
    spec: CacheSpec,
    memory_limit: int,
    page_sizes: Sequence[int],
    layouts: Sequence[str],
    baselines: bool = True,
) -> Iterator[Case]:
    """Yield every layout with every page size, then static and 16-token paged allocation."""
    for layout in layouts:
        for size in page_sizes:
            name = ContiguousAllocator.name(spec, size, layout)
            make = partial(ContiguousAllocator, spec, memory_limit, size, layout)
            yield Case(name, make)
    if baselines:
        yield Case(StaticAllocator.name, partial(StaticAllocator, spec, memory_limit))
        yield Case(PagedAllocator.name, partial(PagedAllocator, spec, memory_limit))


def run(
    case: Case,
    trace: Trace,
    spec: CacheSpec,
    step_seconds: float | None,
    progress: Callable[[int], object] | None = None,
) -> Result:
    """Replay ``trace`` through one case; everything is given back afterwards."""
    allocator = case.make()
    try:
        return replay(trace, spec, allocator, step_seconds=step_seconds, progress=progress)
    finally:
        allocator.close()


def check_fits(spec: CacheSpec, memory_limit: int) -> None:
    """Raise ``ConfigError`` where not even one request of ``max_tokens`` fits in the limit."""
    needed = spec.max_tokens * spec.token_bytes
    if memory_limit < needed:
        raise ConfigError(
            f"a memory limit of {memory_limit} bytes is less than the {needed} bytes of one "
            f"request of {spec.max_tokens} tokens: raise the limit or lower max_tokens"
        )
