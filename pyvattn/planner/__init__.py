"""Which page size and which layout: pure Python, free of devices.

>>> from pyvattn import CacheSpec
>>> from pyvattn.planner import plan
>>> choice = plan(CacheSpec(32, 8, 128), driver="cumem").choice
>>> choice.layout, choice.page_size >> 20
('token', 2)
"""

from pyvattn.planner.candidate import Candidate
from pyvattn.planner.choose import Plan, plan
from pyvattn.planner.costs import DEFAULT_COSTS, DriverCosts, default_costs, load_calibration
from pyvattn.planner.tlb import Verdict
from pyvattn.planner.workload import Workload, typical_workload

__all__ = [
    "DEFAULT_COSTS",
    "Candidate",
    "DriverCosts",
    "Plan",
    "Verdict",
    "Workload",
    "default_costs",
    "load_calibration",
    "plan",
    "typical_workload",
]
