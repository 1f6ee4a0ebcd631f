# SPDX-License-Identifier: Apache-2.0
"""Measurements: paired in one process, with median and spread, kept as JSON.

One file for each bench; ``pyvattn.bench.registry`` lists them.
"""

from pyvattn.bench.registry import BENCHES, Bench
from pyvattn.bench.report import Measure, Report

__all__ = ["BENCHES", "Bench", "Measure", "Report"]
