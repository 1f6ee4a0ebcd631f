# SPDX-License-Identifier: Apache-2.0
"""The ``host`` driver: ordinary memory."""

from __future__ import annotations

import os

from pyvattn.detect.core import Ask
from pyvattn.detect.machine import Machine
from pyvattn.detect.report import DriverReport
from pyvattn.errors import DriverUnavailable

NAME = "host"


def detect(_machine: Machine, ask: Ask) -> DriverReport:
    """Report on ``host``; it needs memfd_create, so Linux."""
    if not hasattr(os, "memfd_create"):
        return DriverReport(NAME, False, "this system has no memfd_create: Linux is needed")
    try:
        offer = ask(NAME)
    except DriverUnavailable as error:
        return DriverReport(NAME, False, str(error))
    return DriverReport(NAME, True, "memfd and mmap on ordinary memory", offer.page_sizes)
