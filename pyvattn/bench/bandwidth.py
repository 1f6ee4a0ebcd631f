"""``bench bandwidth``: bytes made usable in a second, by extent size."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from pyvattn import _native
from pyvattn.bench.api import Extent, open_driver
from pyvattn.bench.report import Measure
from pyvattn.bench.timing import summarise
from pyvattn.units import format_size

K, M = 1 << 10, 1 << 20


@dataclass(frozen=True)
class Options:
    """``page_size`` None is the driver's smallest; ``total`` MiB are mapped in each round."""

    driver: str = "cumem"
    page_size: str | None = None
    device: int = 0
    rounds: int = 15
    total: int = 256


def measure(options: Options) -> Iterator[Measure]:
    """Yield every measure. Raises DriverUnavailable where the driver is not."""
    driver = open_driver(options.driver, options.page_size, options.device)
    page = driver.page_size
    pages = 1
    while pages * page <= min(64 * M, options.total * M):
        yield from _extents(driver, page, pages, options)
        pages *= 4


def _extents(driver: _native.Driver, page: int, pages: int, options: Options) -> Iterator[Measure]:
    size = pages * page
    extents = [Extent(driver, page, pages) for _ in range(options.total * M // size)]
    for extent in extents:
        extent.reserve()
    fresh, reused = [], []
    try:
        for _ in range(options.rounds):
            began = time.perf_counter()
            for extent in extents:
                extent.allocate()
                extent.map()
            allocated = time.perf_counter()
            for extent in extents:
                extent.unmap()
            unmapped = time.perf_counter()
            for extent in extents:
                extent.map()
            mapped = time.perf_counter()
            for extent in extents:
                extent.unmap()
                extent.free()
            gigabytes = len(extents) * size / 1e9
            fresh.append(gigabytes / (allocated - began))
            reused.append(gigabytes / (mapped - unmapped))
    finally:
        for extent in extents:
            extent.release()
    title = f"extents of {format_size(size)}"
    yield Measure.of(f"new memory, {title}", summarise(fresh), "GB/s", note="allocate and map")
    yield Measure.of(f"reused memory, {title}", summarise(reused), "GB/s", note="map")
