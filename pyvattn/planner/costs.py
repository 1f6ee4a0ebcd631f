# SPDX-License-Identifier: Apache-2.0
"""What driver calls cost: the constants of the cost model, each with its source.

The defaults are one machine's measurements. :mod:`pyvattn.planner.calibration`
replaces them by another machine's.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyvattn.arguments import check_name, check_number, check_whole
from pyvattn.errors import ConfigError
from pyvattn.planner.tlb import MEASURED_LOSSES, Losses
from pyvattn.text import shown

K, M = 1 << 10, 1 << 20

_H200 = "one NVIDIA H200, driver 580.159.04, medians"
# Streaming reads of 8 GiB on the same H200; equal on 64K pages, 2M pages and cudaMalloc.
_H200_READ_GB_PER_S = 4515.0


Curve = tuple[tuple[int, float], ...]
"""Pairs (bytes of an extent, microseconds of the one call for it), ascending."""


@dataclass(frozen=True)
class DriverCosts:
    """Costs of one driver's calls.

    ``map_us`` and ``unmap_us`` are for an extent in one call; the latter and ``zero_gb_per_s``
    are empty or None where they were not measured. ``losses`` are those of kernels by layout
    and entries. ``ignored`` says why a calibration was not
    used. ``extent_is_page`` says that an extent never
    spans pages: each page is a call of its own. ``one_call_per_step`` says
    that all of a step's extents go in one call, whose time beyond the
    cheapest call grows with the bytes mapped. ``page_table`` says whether
    kernels suffer from too few tokens in a page-table entry, and
    ``private_guard`` that the tail guard takes pages of the request's own,
    because the driver cannot replace shared zeros without a fault in between.
    """

    driver: str
    page_sizes: tuple[int, ...]
    map_us: Curve
    read_gb_per_s: float
    source: str
    measured: bool = True
    unmap_us: Curve = ()
    zero_gb_per_s: float | None = None
    losses: Losses = MEASURED_LOSSES
    ignored: str = ""
    extent_is_page: bool = False
    one_call_per_step: bool = False
    page_table: bool = True
    private_guard: bool = False

    def call_us(self, extent: float) -> float:
        """Return the time in µs of one call that maps ``extent`` bytes.

        Linear between the measured sizes and beyond the last; below the first
        a call costs what the first costs.
        """
        check_number("extent", extent)
        return _on_curve(self.map_us, extent)

    def map_cost(self, extents: float, extent: float, page_size: int) -> tuple[float, float]:
        """Return (calls, µs) of mapping ``extents`` extents of ``extent`` bytes in one step.

        ``extents`` may be a fraction: the mean over many steps.
        """
        _check_extents(extents, extent, page_size)
        if self.extent_is_page:
            pages = extents * extent / page_size
            return pages, pages * self.call_us(page_size)
        if self.one_call_per_step:
            calls = min(1.0, extents)
            first, last = self.map_us[0], self.map_us[-1]
            us_per_byte = (last[1] - first[1]) / (last[0] - first[0])
            return calls, calls * first[1] + extents * extent * us_per_byte
        return extents, extents * self.call_us(extent)

    def unmap_cost_us(self, extents: float, extent: float, page_size: int) -> float | None:
        """Return µs to unmap ``extents`` extents of ``extent`` bytes; None where not measured."""
        _check_extents(extents, extent, page_size)
        if not self.unmap_us:
            return None
        if self.extent_is_page:
            return extents * extent / page_size * _on_curve(self.unmap_us, page_size)
        return extents * _on_curve(self.unmap_us, extent)


def _check_extents(extents: float, extent: float, page_size: int) -> None:
    check_number("extents", extents)
    check_number("extent", extent)
    check_whole("page_size", page_size, least=1)


def _on_curve(curve: Curve, extent: float) -> float:
    sizes = [size for size, _ in curve]
    if extent <= sizes[0] or len(sizes) == 1:
        return curve[0][1]
    right = min(bisect_left(sizes, extent), len(sizes) - 1)
    (x0, y0), (x1, y1) = curve[right - 1], curve[right]
    return y0 + (y1 - y0) * (extent - x0) / (x1 - x0)


def curve_of(pairs: Mapping[str, Any]) -> Curve:
    """Return the curve that a calibration file has: µs by bytes, whose keys are text."""
    return tuple(sorted((int(size), float(us)) for size, us in pairs.items()))


def _shipped(driver: str, name: str) -> Curve:
    return curve_of(_SHIPPED["drivers"][driver][name])


# What `pyvattn calibrate` wrote on that H200: with 64K entries, and an unmap maps zeros. Calls
# took between 19 and 40 µs on machines with the same GPU and driver; a calibration of one's own
# is better than these.
_SHIPPED = json.loads(Path(__file__).with_name("h200.json").read_text(encoding="utf-8"))

DEFAULT_COSTS = {
    costs.driver: costs
    for costs in (
        DriverCosts(
            driver="patched",
            page_sizes=(64 * K, 128 * K, 256 * K, 2 * M),
            map_us=_shipped("stock-uvm", "map_us"),
            read_gb_per_s=_H200_READ_GB_PER_S,
            source="not measured: the cost of stock-uvm's calls, taken for one call a step",
            measured=False,
            one_call_per_step=True,
        ),
        DriverCosts(
            driver="stock-uvm",
            page_sizes=(64 * K, 128 * K, 256 * K, 512 * K, 1 * M, 2 * M),
            map_us=_shipped("stock-uvm", "map_us"),
            read_gb_per_s=_H200_READ_GB_PER_S,
            source=f"UVM_MAP_EXTERNAL_ALLOCATION with 64K entries; {_H200}",
            unmap_us=_shipped("stock-uvm", "unmap_us"),
            private_guard=True,
        ),
        DriverCosts(
            driver="cumem",
            page_sizes=(2 * M,),
            map_us=_shipped("cumem", "map_us"),
            read_gb_per_s=_H200_READ_GB_PER_S,
            source=f"cuMemMap + cuMemSetAccess of one page whose handle is there; {_H200}",
            unmap_us=_shipped("cumem", "unmap_us"),
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
    check_name("driver", driver, such_as="cumem")
    if driver not in DEFAULT_COSTS:
        raise ConfigError(
            f"driver {shown(driver)} is unknown to the planner: use one of "
            f"{', '.join(DEFAULT_COSTS)}"
        )
    return DEFAULT_COSTS[driver]
