# SPDX-License-Identifier: Apache-2.0
"""Measures this machine's constants of the planner's cost model: ``pyvattn calibrate``.

Calls and rates are measured on any driver, the host's included; what layouts cost
kernels needs a GPU and torch.
"""

from __future__ import annotations

from pyvattn.calibrate.driver import Options, measure_driver
from pyvattn.calibrate.file import describe, to_share, write_calibration

__all__ = ["Options", "describe", "measure_driver", "to_share", "write_calibration"]
