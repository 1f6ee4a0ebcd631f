# SPDX-License-Identifier: Apache-2.0
"""The ``cumem`` driver: CUDA's public virtual memory management."""

from __future__ import annotations

from pyvattn.detect.core import Ask
from pyvattn.detect.machine import Machine
from pyvattn.detect.report import DriverReport
from pyvattn.errors import DriverUnavailable

NAME = "cumem"


def detect(machine: Machine, ask: Ask) -> DriverReport:
    """Report on ``cumem``; any CUDA GPU with a recent driver has it."""
    if (reason := machine.no_gpu_reason) is not None:
        return DriverReport(NAME, False, reason)
    try:
        offer = ask(NAME)
    except DriverUnavailable as error:
        return DriverReport(NAME, False, str(error))
    return DriverReport(
        NAME,
        True,
        "CUDA's virtual memory management, on any CUDA GPU",
        offer.page_sizes,
        advice=_access(offer.peers),
        peers=offer.peers,
    )


def _access(peers: tuple[int, ...]) -> str:
    """Say which GPUs a cache can be opened to; none by itself, because that costs map calls."""
    if not peers:
        return ""
    names = ", ".join(f"cuda:{peer}" for peer in peers)
    return f"{names} can copy straight into a cache that is opened with peer_access=True"
