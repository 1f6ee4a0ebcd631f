# SPDX-License-Identifier: Apache-2.0
"""Weighs a kernel's time against the memory that its tail guard takes.

By the planner's third rule: the least loss wins, the share of memory that a request wastes plus the
share of decode time that is lost, here that of attention over the reference kernel's. Losses equal
to 0.1 percentage points are a tie, and go to the faster kernel.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyvattn.arguments import check_type
from pyvattn.kernels import kernel_named
from pyvattn.planner.choose import Plan
from pyvattn.planner.costs import DriverCosts, default_costs
from pyvattn.planner.groups import guarded_for, lost_share, plan_parts, request_bytes
from pyvattn.spec import CacheSpec

# Medians of `pyvattn bench attention` on one machine, which `make results` takes from the JSON
# that `source` names.
_TIMES = json.loads(Path(__file__).with_name("kernel_times.json").read_text(encoding="utf-8"))

TIMES_SOURCE = str(_TIMES["source"])
"""What the times of kernels were measured with, and where."""


@dataclass(frozen=True)
class KernelChoice:
    """An attention kernel, and what a cache that is opened for it gives up.

    ``guard_tokens`` are past each row, of the layers that need most; ``plans`` are made with them,
    and a request of the planned load holds ``request_bytes`` on average. ``decode`` and ``prefill``
    are the time of attention over that of the kernel all are compared with, as it was measured.
    """

    name: str
    guard_tokens: int
    plans: tuple[Plan, ...]
    request_bytes: float
    decode: float
    prefill: float

    @property
    def loss(self) -> float:
        """Share of memory that a request wastes, plus share of decode time that is lost."""
        return lost_share(self.plans) + self.decode - 1


def weigh_kernels(
    spec: CacheSpec, *, driver: str, costs: DriverCosts | None = None, **options: Any
) -> tuple[KernelChoice, ...]:
    """Return the kernels whose times were measured, best first.

    ``options`` are those of :func:`~pyvattn.planner.plan`, which also says what is raised. Empty
    where there is nothing to weigh: where the driver backs guards with zeros that requests
    share, and where ``spec`` has what these kernels do not take.
    """
    check_type("spec", spec, CacheSpec)
    check_type("costs", costs, DriverCosts, type(None))
    costs = costs or default_costs(driver)
    if not costs.private_guard or not _taken(spec):
        return ()
    found = []
    for name, times in _TIMES["kernels"].items():
        guarded = guarded_for(spec, name)
        plans = plan_parts(guarded, driver=driver, costs=costs, **options)
        guard = max(part.guard_tokens for part in guarded.parts)
        held = request_bytes(guarded, plans)
        found.append(KernelChoice(name, guard, plans, held, times["decode"], times["prefill"]))
    return tuple(sorted(found, key=lambda each: (round(each.loss, 3), each.decode)))


def _taken(spec: CacheSpec) -> bool:
    """Whether the kernel that all are compared with takes every layer; the others are its forms."""
    most = kernel_named(_TIMES["over"]).most_head_dim or 0
    plain = spec.kind != "mla" and spec.itemsize <= 2
    return plain and all(max(part.head_dim, part.v_head_dim) <= most for part in spec.parts)
