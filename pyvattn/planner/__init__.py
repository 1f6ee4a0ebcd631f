# SPDX-License-Identifier: Apache-2.0
"""Which page size and which layout: pure Python, free of devices.

>>> from pyvattn import CacheSpec
>>> from pyvattn.planner import plan
>>> choice = plan(CacheSpec(32, 8, 128), driver="cumem").choice
>>> choice.layout, choice.page_size >> 20
('token', 2)
"""

from pyvattn.planner.calibration import Calibration, read_calibration, use_calibration
from pyvattn.planner.candidate import Candidate
from pyvattn.planner.choose import GROWTH_PAGES, Plan, plan
from pyvattn.planner.costs import DEFAULT_COSTS, DriverCosts, default_costs
from pyvattn.planner.groups import guarded_for, held_bytes, plan_parts
from pyvattn.planner.kernel_choice import KernelChoice, weigh_kernels
from pyvattn.planner.tlb import Losses, Verdict
from pyvattn.planner.windows import WindowChoice, window_choices, with_rings
from pyvattn.planner.workload import Workload, typical_workload

__all__ = [
    "DEFAULT_COSTS",
    "GROWTH_PAGES",
    "Calibration",
    "Candidate",
    "DriverCosts",
    "KernelChoice",
    "Losses",
    "Plan",
    "Verdict",
    "WindowChoice",
    "Workload",
    "default_costs",
    "guarded_for",
    "held_bytes",
    "plan",
    "plan_parts",
    "read_calibration",
    "typical_workload",
    "use_calibration",
    "weigh_kernels",
    "window_choices",
    "with_rings",
]
