# SPDX-License-Identifier: Apache-2.0
"""One driver: its calls by extent size, and how fast its memory is read, copied and zeroed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from pyvattn import _native
from pyvattn.arguments import Settings, check_name, check_type
from pyvattn.calibrate.rates import make_rates
from pyvattn.planner import Losses

M = 1 << 20
_TOTAL = 64 * M
# Extents in multiples of the smallest page, and on to the largest.
_MULTIPLES = (1, 2, 4, 8)
_SIZES = (2 * M, 8 * M, 16 * M, 64 * M)


@dataclass(frozen=True)
class Options(Settings):
    """``rounds`` of every call; ``kernels`` also measures what layouts cost them on a GPU."""

    device: int = 0
    rounds: int = 31
    kernels: bool = True


@dataclass(frozen=True)
class DriverConstants:
    """Medians of one driver. Times are in µs by bytes of the extent, rates in GB/s.

    ``fixed_us`` and ``us_per_mib`` are the line through the map times by least squares.
    Rates are None where nothing here can measure them.
    """

    driver: str
    page_size: int
    map_us: dict[int, float]
    unmap_us: dict[int, float]
    fixed_us: float
    us_per_mib: float
    zero_gb_per_s: float
    read_gb_per_s: float | None
    losses: Losses | None = None
    notes: tuple[str, ...] = field(default_factory=tuple)


def measure_driver(name: str, options: Options) -> DriverConstants:
    """Measure driver ``name``; raise ``DriverUnavailable`` where it is not."""
    check_name("name", name, such_as="cumem")
    check_type("options", options, Options)
    page = min(_native.driver_capabilities(name, options.device).page_sizes)
    driver = _native.make_driver(name, page, options.device)
    memory = _Memory(driver)
    try:
        sizes = memory.extents()
        map_us, unmap_us = {}, {}
        for size in sizes:
            map_us[size], unmap_us[size] = memory.time_calls(size, options.rounds)
        memory.map(_TOTAL)
        zero = _median_rate(lambda: driver.zero([(memory.base, _TOTAL)]), _TOTAL, options.rounds)
        rates = make_rates(driver, memory.base, _TOTAL)
        read = _median_rate(rates.read, rates.bytes, options.rounds) if rates else None
        memory.unmap(_TOTAL)
    finally:
        memory.close()
    fixed, slope = _line(map_us)
    return DriverConstants(name, page, map_us, unmap_us, fixed, slope * M, zero, read)


class _Memory:
    """Addresses, and as many bytes in one slab."""

    def __init__(self, driver: _native.Driver) -> None:
        self._driver, self.page = driver, driver.page_size
        self.base = driver.reserve(_TOTAL, self.page)
        try:
            self._slab = driver.allocate_slab(_TOTAL)
        except BaseException:
            driver.release_reservation(self.base)
            raise
        # What is mapped once has page tables, and on the host pages.
        self.map(_TOTAL)
        driver.zero([(self.base, _TOTAL)])
        self.unmap(_TOTAL)

    def extents(self) -> tuple[int, ...]:
        """Sizes to time. Where each page is a call of its own, one is enough."""
        if self._driver.capabilities.call_per_page:
            return (self.page,)
        sizes = {self.page * n for n in _MULTIPLES} | {size for size in _SIZES if size > self.page}
        return tuple(sorted(size for size in sizes if size <= _TOTAL))

    def time_calls(self, size: int, rounds: int) -> tuple[float, float]:
        """Return the median µs to map, and to unmap, the first ``size`` bytes."""
        mapped, unmapped = [], []
        for _ in range(rounds + 1):
            began = time.perf_counter_ns()
            self.map(size)
            between = time.perf_counter_ns()
            self.unmap(size)
            mapped.append(between - began)
            unmapped.append(time.perf_counter_ns() - between)
        return statistics.median(mapped[1:]) / 1e3, statistics.median(unmapped[1:]) / 1e3

    def map(self, size: int) -> None:
        """Map the first ``size`` bytes in one batch."""
        self._driver.map(self._entries(size))

    def unmap(self, size: int) -> None:
        """Unmap them again."""
        self._driver.unmap(self._entries(size))

    def close(self) -> None:
        """Give everything back."""
        self._driver.free_slab(self._slab)
        self._driver.release_reservation(self.base)

    def _entries(self, size: int) -> list[_native.MapEntry]:
        return [_native.MapEntry(self.base, size, self._slab, 0)]


def _median_rate(act: Callable[[], object], size: int, rounds: int) -> float:
    act()
    rates = []
    for _ in range(rounds):
        began = time.perf_counter_ns()
        act()
        rates.append(size / (time.perf_counter_ns() - began))
    return statistics.median(rates)


def _line(curve: dict[int, float]) -> tuple[float, float]:
    """Return (µs of a call, µs for each byte) by least squares; no byte costs less than none."""
    times = list(curve.values())
    slope, fixed = statistics.linear_regression(list(curve), times) if len(times) > 1 else (0, 0)
    return (fixed, slope) if slope > 0 else (statistics.fmean(times), 0.0)
