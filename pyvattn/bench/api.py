# SPDX-License-Identifier: Apache-2.0
"""``bench api``: what each call to a driver costs, by extent size.

The paper's table of API costs. The driver is called as the cache calls it; for
`cumem` the calls of CUDA that make up each operation are timed apart as well,
through cuda-python.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pyvattn import _native
from pyvattn.arguments import Settings, check_type
from pyvattn.bench.report import Measure
from pyvattn.bench.timing import summarise
from pyvattn.errors import DriverError, MissingDependency
from pyvattn.units import format_size, parse_size

M = 1 << 20
_EXTENTS = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Options(Settings, least={"rounds": 3}):
    """``page_size`` None is the driver's smallest; ``rounds`` of every operation.

    ``peer_access``: other GPUs get access to what is mapped.
    """

    driver: str = "cumem"
    page_size: str | None = None
    device: int = 0
    rounds: int = 31
    peer_access: bool = False


def measure(options: Options) -> Iterator[Measure]:
    """Yield every measure. Raises DriverUnavailable where the driver is not."""
    check_type("options", options, Options)
    driver = open_driver(
        options.driver, options.page_size, options.device, peer_access=options.peer_access
    )
    page = driver.page_size
    for pages in _EXTENTS:
        yield from _operations(driver, page, pages, options.rounds)
    if options.driver == "cumem":
        for pages in (1, 8, 32):
            yield from _cuda_calls(options.device, pages * page, options.rounds)


def open_driver(
    name: str, page_size: str | None, device: int, *, peer_access: bool = False
) -> _native.Driver:
    """Open a driver; ``page_size`` None is its smallest."""
    sizes = _native.driver_capabilities(name, device).page_sizes
    page = sizes[0] if page_size is None else parse_size(page_size, "page_size")
    return _native.make_driver(name, page, device, peer_access)


class Extent:
    """Addresses and memory of one extent, and each operation on it by itself."""

    def __init__(self, driver: _native.Driver, page: int, pages: int) -> None:
        self._driver, self._bytes, self._page = driver, pages * page, page

    def reserve(self) -> None:
        """Reserve the addresses."""
        self._base = self._driver.reserve(self._bytes, self._page)

    def allocate(self) -> None:
        """Allocate the memory."""
        self._slab = self._driver.allocate_slab(self._bytes)

    def map(self) -> None:
        """Map all of it, in one batch."""
        self._driver.map(self._entries())

    def unmap(self) -> None:
        """Unmap all of it, in one batch."""
        self._driver.unmap(self._entries())

    def free(self) -> None:
        """Free the memory."""
        self._driver.free_slab(self._slab)

    def release(self) -> None:
        """Release the addresses."""
        self._driver.release_reservation(self._base)

    def _entries(self) -> list[_native.MapEntry]:
        return [_native.MapEntry(self._base, self._bytes, self._slab, 0)]


def _operations(driver: _native.Driver, page: int, pages: int, rounds: int) -> Iterator[Measure]:
    seconds: dict[str, list[float]] = {}

    def timed(name: str, act: Callable[[], None]) -> None:
        began = time.perf_counter_ns()
        act()
        seconds.setdefault(name, []).append((time.perf_counter_ns() - began) / 1e9)

    for _ in range(rounds + 1):
        extent = Extent(driver, page, pages)
        timed("reserve", extent.reserve)
        timed("allocate", extent.allocate)
        timed("map, new memory", extent.map)
        timed("unmap", extent.unmap)
        timed("map, reused memory", extent.map)
        extent.unmap()
        timed("free", extent.free)
        timed("release", extent.release)
    for name, values in seconds.items():
        title = f"{name}, {format_size(pages * page)}"
        yield Measure.of(
            title, summarise(values[1:]), "µs", scale=1e6, note=f"{pages} page{'s' * (pages > 1)}"
        )


def _cuda_calls(device: int, size: int, rounds: int) -> Iterator[Measure]:
    """Time the calls of CUDA one by one, with one handle of ``size`` bytes."""
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise MissingDependency(
            "timing CUDA's own calls needs cuda-python: pip install 'pyvattn[cuda]'"
        ) from error
    properties = driver.CUmemAllocationProp()
    properties.type = driver.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
    properties.location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    properties.location.id = device
    access = driver.CUmemAccessDesc()
    access.location = properties.location
    access.flags = driver.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
    seconds: dict[str, list[float]] = {}

    def timed(name: str, *arguments: Any) -> Any:
        function = getattr(driver, name)
        began = time.perf_counter_ns()
        status, *results = function(*arguments)
        seconds.setdefault(name, []).append((time.perf_counter_ns() - began) / 1e9)
        if status != driver.CUresult.CUDA_SUCCESS:
            raise DriverError(f"{name} failed: {status!r}", operation=name, status=status.name)
        return results[0] if results else None

    for _ in range(rounds + 1):
        address = timed("cuMemAddressReserve", size, 0, 0, 0)
        handle = timed("cuMemCreate", size, properties, 0)
        timed("cuMemMap", address, size, 0, handle, 0)
        timed("cuMemSetAccess", address, size, [access], 1)
        timed("cuMemUnmap", address, size)
        timed("cuMemRelease", handle)
        timed("cuMemAddressFree", address, size)
    for name, values in seconds.items():
        title = f"{name}, {format_size(size)}"
        note = "through cuda-python, one handle"
        yield Measure.of(title, summarise(values[1:]), "µs", scale=1e6, note=note)
