# SPDX-License-Identifier: Apache-2.0
"""Which drivers this machine offers, and why the others are not available.

One file for each driver; the order is that of preference on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence

from pyvattn.arguments import check_callable, check_ordinal, check_type
from pyvattn.detect import cumem, host, patched, stock_uvm
from pyvattn.detect.auto import AutoChoice, choose_auto
from pyvattn.detect.core import Ask, ask_core
from pyvattn.detect.machine import Machine, read_machine
from pyvattn.detect.report import DriverReport

_DETECTORS = (patched.detect, stock_uvm.detect, cumem.detect, host.detect)


def detect_drivers(
    device: int = 0, machine: Machine | None = None, ask: Ask | None = None
) -> tuple[DriverReport, ...]:
    """Report on every driver for CUDA device number ``device``.

    What the machine lacks is in the reports. ``machine`` and ``ask`` stand in for this one.
    Raises :class:`~pyvattn.errors.ConfigError` and :class:`~pyvattn.errors.ArgumentError` for
    arguments of other types.
    """
    device = check_ordinal("device", device)
    check_type("machine", machine, Machine, type(None))
    check_callable("ask", ask)
    machine = machine or read_machine()
    ask = ask or ask_core(device)
    return tuple(detect(machine, ask) for detect in _DETECTORS)


def auto_driver(reports: Sequence[DriverReport], device: str) -> str | None:
    """Return the driver that ``auto`` means on ``device`` ("cpu" or "cuda…"), None for none."""
    return choose_auto(reports, device).driver


__all__ = [
    "AutoChoice",
    "DriverReport",
    "Machine",
    "auto_driver",
    "choose_auto",
    "detect_drivers",
    "read_machine",
]
