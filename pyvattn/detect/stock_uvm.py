# SPDX-License-Identifier: Apache-2.0
"""The ``stock-uvm`` driver: the stock kernel driver's own ioctls."""

from __future__ import annotations

from pyvattn.detect.core import Ask
from pyvattn.detect.machine import Machine
from pyvattn.detect.report import DriverReport
from pyvattn.errors import DriverUnavailable

NAME = "stock-uvm"


def detect(machine: Machine, ask: Ask) -> DriverReport:
    """Report on ``stock-uvm``; ``auto`` never chooses it, so an available one comes with advice."""
    if (reason := _refusal(machine)) is not None:
        return DriverReport(NAME, False, reason)
    try:
        offer = ask(NAME)
    except DriverUnavailable as error:
        return DriverReport(NAME, False, str(error))
    return DriverReport(
        NAME,
        True,
        f"the ioctls of NVIDIA driver {machine.release} are known; the self-test runs when it is "
        "opened, and with --probe",
        offer.page_sizes,
        advice="never chosen by itself: ask with driver='stock-uvm' or PYVATTN_DRIVER=stock-uvm",
    )


def _refusal(machine: Machine) -> str | None:
    if machine.wsl:
        return "WSL has no /dev/nvidia-uvm"
    if (reason := machine.no_gpu_reason) is not None:
        return reason
    if not machine.uvm_node:
        return "/dev/nvidia-uvm is missing: load nvidia-uvm, or pass the node into the container"
    return None
