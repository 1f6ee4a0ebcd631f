# SPDX-License-Identifier: Apache-2.0
"""The ``patched`` driver: our ioctls in a patched nvidia-uvm."""

from __future__ import annotations

from pyvattn.detect.core import Ask
from pyvattn.detect.machine import Machine
from pyvattn.detect.report import DriverReport
from pyvattn.errors import DriverUnavailable

NAME = "patched"

_HOW = "a patched nvidia-uvm would map a whole step in one call: `pyvattn driver plan`"


def detect(machine: Machine, ask: Ask) -> DriverReport:
    """Report on ``patched``; only NVIDIA's open kernel modules can be patched."""
    if machine.wsl:
        return DriverReport(NAME, False, "WSL has no nvidia-uvm module of its own")
    if (reason := machine.no_gpu_reason) is not None:
        return DriverReport(NAME, False, reason)
    if not machine.open_modules:
        return DriverReport(
            NAME,
            False,
            f"NVIDIA driver {machine.release} is the proprietary flavour: the patch is for the "
            "open kernel modules",
        )
    try:
        offer = ask(NAME)
    except DriverUnavailable as error:
        return DriverReport(NAME, False, str(error), advice=_HOW)
    return DriverReport(NAME, True, "the patched nvidia-uvm is loaded", offer.page_sizes)
