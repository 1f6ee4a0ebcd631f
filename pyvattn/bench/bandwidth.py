# SPDX-License-Identifier: Apache-2.0
"""``bench bandwidth``: bytes made usable in a second, by extent size.

Extents are mapped at addresses that were used before, out of memory that is taken in
as large pieces as the driver wants it, as the cache does. *New* memory comes from the
device in the same round, *reused* memory was mapped before. With ``against`` a second
driver does the same by turns, and the times of each round are compared: like with like,
and *from slabs*, growth as a cache meets it. There stock-uvm maps out of a slab that it
holds, while cumem, one handle a page, creates what it maps.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from pyvattn import _native
from pyvattn.arguments import Settings, check_type
from pyvattn.bench.api import open_driver
from pyvattn.bench.report import Measure
from pyvattn.bench.timing import ratios, summarise
from pyvattn.errors import ConfigError
from pyvattn.units import format_size

K, M = 1 << 10, 1 << 20
_EXTENTS = (64 * K, 256 * K, M, 2 * M, 8 * M, 64 * M)
_NEW, _REUSED = _KINDS = ("new memory", "reused memory")
# What is compared: the kind of ours and of theirs.
_COMPARED = {
    "from slabs / as new memory": (_REUSED, _NEW),
    "both as new memory": (_NEW, _NEW),
    "both as reused memory": (_REUSED, _REUSED),
}
# Of the time that cumem takes to create and map, where stock-uvm maps from its slabs.
_TARGETS = {2 * M: 0.6, 64 * M: 0.25}


@dataclass(frozen=True)
class Options(Settings, least={"rounds": 3, "total": 2}):
    """``page_size`` None is the driver's smallest; ``total`` MiB are mapped in each round.

    ``against`` is a second driver, with its smallest pages.
    """

    driver: str = "cumem"
    page_size: str | None = None
    device: int = 0
    rounds: int = 15
    total: int = 256
    against: str | None = None


class Memory:
    """``total`` bytes of one driver, mapped as extents of any size."""

    def __init__(self, name: str, page_size: str | None, device: int, total: int) -> None:
        self.name, self.total = name, total
        self._driver = open_driver(name, page_size, device)
        self.page = self._driver.page_size
        self._base = self._driver.reserve(total, self.page)

    def time(self, extent: int) -> tuple[float, float]:
        """Return the seconds to make all of it usable: as new memory, and reused."""
        began = time.perf_counter()
        slab = self._driver.allocate_slab(self.total)
        batches = [
            [_native.MapEntry(self._base + start, extent, slab, start)]
            for start in range(0, self.total, extent)
        ]
        self._map(batches)
        fresh = time.perf_counter() - began
        self._unmap(batches)
        began = time.perf_counter()
        self._map(batches)
        reused = time.perf_counter() - began
        self._unmap(batches)
        self._driver.free_slab(slab)
        return fresh, reused

    def close(self) -> None:
        """Release the addresses."""
        self._driver.release_reservation(self._base)

    def _map(self, batches: list[list[_native.MapEntry]]) -> None:
        for batch in batches:
            self._driver.map(batch)

    def _unmap(self, batches: list[list[_native.MapEntry]]) -> None:
        for batch in batches:
            self._driver.unmap(batch)


def measure(options: Options) -> Iterator[Measure]:
    """Yield every measure. Raises DriverUnavailable where a driver is not."""
    check_type("options", options, Options)
    if options.against == options.driver:
        raise ConfigError(f"--against {options.against!r} is the driver itself: name another")
    total = options.total * M
    memories = [Memory(options.driver, options.page_size, options.device, total)]
    try:
        if options.against is not None:
            memories.append(Memory(options.against, None, options.device, total))
        for extent in _EXTENTS:
            if extent <= total and total % extent == 0:
                yield from _measure_extent(memories, extent, options.rounds)
    finally:
        for memory in memories:
            memory.close()


def _measure_extent(memories: list[Memory], extent: int, rounds: int) -> Iterator[Measure]:
    able = [memory for memory in memories if memory.page <= extent]
    seconds: dict[tuple[str, str], list[float]] = {}
    for turn in range(rounds + 1):
        for memory in able:
            for kind, value in zip(_KINDS, memory.time(extent), strict=True):
                if turn > 0:  # the first makes page tables
                    seconds.setdefault((memory.name, kind), []).append(value)
    title = f"extents of {format_size(extent)}"
    for memory in able:
        note = f"{memory.name}, {format_size(memory.page)} pages"
        for kind in _KINDS:
            rates = [memory.total / 1e9 / value for value in seconds[memory.name, kind]]
            yield Measure.of(f"{memory.name}, {kind}, {title}", summarise(rates), "GB/s", note=note)
    if len(able) < 2:
        return
    ours, theirs = able[0].name, able[1].name
    for what, (kind, other) in _COMPARED.items():
        compared = ratios(seconds[ours, kind], seconds[theirs, other])
        aimed_at = (ours, theirs, kind, other) == ("stock-uvm", "cumem", _REUSED, _NEW)
        yield Measure.of(
            f"time, {ours} / {theirs}, {what}, {title}",
            compared,
            "times",
            at_most=_TARGETS.get(extent) if aimed_at else None,
        )
