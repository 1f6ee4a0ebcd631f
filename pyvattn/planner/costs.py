"""What driver calls cost: the constants of the cost model, each with its source.

The defaults are one machine's measurements. :func:`load_calibration` replaces
them by another machine's.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from pyvattn.errors import ConfigError

K, M = 1 << 10, 1 << 20

_H200 = "one NVIDIA H200, driver 580.159.04, medians"
# Streaming reads of 8 GiB on the same H200; equal on 64K pages, 2M pages and cudaMalloc.
_H200_READ_GB_PER_S = 4515.0


@dataclass(frozen=True)
class DriverCosts:
    """Costs of one driver's calls.

    ``map_us`` are pairs (bytes of the extent, microseconds of the one call
    that maps it), ascending. ``extent_is_page`` says that an extent never
    spans pages: each page is a call of its own. ``one_call_per_step`` says
    that all of a step's extents go in one call, whose time beyond the
    cheapest call grows with the bytes mapped. ``page_table`` says whether
    kernels suffer from too few tokens in a page-table entry, and
    ``private_guard`` that the tail guard takes pages of the request's own,
    because the driver cannot replace shared zeros without a fault in between.
    """

    driver: str
    page_sizes: tuple[int, ...]
    map_us: tuple[tuple[int, float], ...]
    read_gb_per_s: float
    source: str
    measured: bool = True
    extent_is_page: bool = False
    one_call_per_step: bool = False
    page_table: bool = True
    private_guard: bool = False

    def call_us(self, extent: float) -> float:
        """Return the time in µs of one call that maps ``extent`` bytes.

        Linear between the measured sizes and beyond the last; below the first
        a call costs what the first costs.
        """
        sizes = [size for size, _ in self.map_us]
        if extent <= sizes[0] or len(sizes) == 1:
            return self.map_us[0][1]
        right = min(bisect_left(sizes, extent), len(sizes) - 1)
        (x0, y0), (x1, y1) = self.map_us[right - 1], self.map_us[right]
        return y0 + (y1 - y0) * (extent - x0) / (x1 - x0)

    def map_cost(self, extents: float, extent: float, page_size: int) -> tuple[float, float]:
        """Return (calls, µs) of mapping ``extents`` extents of ``extent`` bytes in one step.

        ``extents`` may be a fraction: the mean over many steps.
        """
        if self.extent_is_page:
            pages = extents * extent / page_size
            return pages, pages * self.call_us(page_size)
        if self.one_call_per_step:
            calls = min(1.0, extents)
            first, last = self.map_us[0], self.map_us[-1]
            us_per_byte = (last[1] - first[1]) / (last[0] - first[0])
            return calls, calls * first[1] + extents * extent * us_per_byte
        return extents, extents * self.call_us(extent)


_STOCK_UVM_MAP_US = (
    (64 * K, 19.4),
    (128 * K, 19.8),
    (256 * K, 19.5),
    (512 * K, 19.7),
    (2 * M, 27.8),
    (16 * M, 74.0),
    (64 * M, 262.0),
)

DEFAULT_COSTS = {
    costs.driver: costs
    for costs in (
        DriverCosts(
            driver="patched",
            page_sizes=(64 * K, 128 * K, 256 * K, 2 * M),
            map_us=_STOCK_UVM_MAP_US,
            read_gb_per_s=_H200_READ_GB_PER_S,
            source="not measured: the cost of stock-uvm's calls, taken for one call a step",
            measured=False,
            one_call_per_step=True,
        ),
        DriverCosts(
            driver="stock-uvm",
            page_sizes=(64 * K, 128 * K, 256 * K, 512 * K, 1 * M, 2 * M),
            map_us=_STOCK_UVM_MAP_US,
            read_gb_per_s=_H200_READ_GB_PER_S,
            source=f"UVM_MAP_EXTERNAL_ALLOCATION; {_H200}",
            private_guard=True,
        ),
        DriverCosts(
            driver="cumem",
            page_sizes=(2 * M,),
            map_us=((2 * M, 13.5 + 3.0 + 33.0),),
            read_gb_per_s=_H200_READ_GB_PER_S,
            source=f"cuMemCreate + cuMemMap + cuMemSetAccess of one page; {_H200}",
            extent_is_page=True,
            private_guard=True,
        ),
        DriverCosts(
            driver="host",
            page_sizes=(64 * K, 128 * K, 256 * K, 512 * K, 1 * M, 2 * M),
            map_us=((64 * K, 2.5), (2 * M, 2.5), (64 * M, 3.3)),
            read_gb_per_s=15.0,
            source="mmap(MAP_FIXED) of a memfd before first touch, a 2-core x86-64 virtual "
            "machine, Linux 6.18, medians",
            page_table=False,
        ),
    )
}


def default_costs(driver: str) -> DriverCosts:
    """Return the built-in constants of ``driver``, or raise ``ConfigError``."""
    try:
        return DEFAULT_COSTS[driver]
    except KeyError:
        raise ConfigError(
            f"driver {driver!r} is unknown to the planner: use one of {', '.join(DEFAULT_COSTS)}"
        ) from None


def load_calibration(path: str | PathLike[str], driver: str) -> DriverCosts:
    """Return the constants of ``driver`` with those that a calibration file replaces.

    The file is JSON: ``{"source": "…", "drivers": {"stock-uvm": {"map_us":
    {"65536": 19.4, …}, "read_gb_per_s": 4515}}}``; both values are optional.
    A driver that the file does not name keeps its defaults. Raises
    ``ConfigError`` for a file that cannot be used.
    """
    base = default_costs(driver)
    try:
        parsed = json.loads(Path(path).read_text(encoding="utf-8"))
        entry = parsed["drivers"].get(driver)
        return base if entry is None else _calibrated(base, entry, str(parsed["source"]))
    except OSError as error:
        raise ConfigError(f"cannot read the calibration {path}: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"the calibration {path} is not usable ({type(error).__name__}: {error}): it needs "
            "'source' and, under 'drivers', 'map_us' and 'read_gb_per_s' of each"
        ) from error


def _calibrated(base: DriverCosts, entry: Mapping[str, Any], source: str) -> DriverCosts:
    changes: dict[str, Any] = {"source": source}
    if "map_us" in entry:
        pairs = sorted((int(size), float(us)) for size, us in entry["map_us"].items())
        if not pairs or any(size <= 0 or us <= 0 for size, us in pairs):
            raise ValueError("map_us wants positive sizes and times")
        changes |= {"map_us": tuple(pairs), "measured": True}
    if "read_gb_per_s" in entry:
        changes["read_gb_per_s"] = float(entry["read_gb_per_s"])
        if not changes["read_gb_per_s"] > 0:
            raise ValueError("read_gb_per_s must be positive")
    return replace(base, **changes)
