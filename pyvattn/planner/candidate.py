# SPDX-License-Identifier: Apache-2.0
"""One page size in one layout, with all that it costs."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

from pyvattn.geometry import Geometry
from pyvattn.planner import tlb
from pyvattn.planner.costs import DriverCosts
from pyvattn.planner.workload import Workload
from pyvattn.spec import CacheSpec

# Mapping counts as hidden if it takes at most this share of a step: the rest is
# left for admissions, zeroing, and steps that are shorter than the mean.
HIDEABLE_SHARE = 0.5

# No layer's kernels take less, however small the model: some seven launches, in
# a CUDA graph. An assumption on the safe side, not a measurement.
LEAST_LAYER_US = 10.0


@dataclass(frozen=True)
class Candidate:
    """What a page size, a layout and pages mapped ahead cost under a workload.

    ``growth_pages`` pages are mapped at a time where a row grows: the one that is needed, and
    those after it.

    Bytes and tokens of waste are those of one request, a private guard included;
    tokens are of the whole model. ``waste_share`` is the mean waste over all that a request holds.
    Calls and times (µs) are means over a step, or of one admission; ``step_us``
    is the least time that a step can take and ``map_share`` mapping time over it.
    ``unmap_us_per_admission`` comes on top where the pages have to be taken from other
    slots, and ``zero_us_per_step`` passes on the device; None where it was not measured.
    """

    layout: str
    layout_name: str
    layers_per_arena: int
    page_size: int
    growth_pages: int
    arenas: int
    token_bytes: int
    tokens_per_page: float
    tokens_per_entry: float | None
    verdict: tlb.Verdict
    kernel_loss: float | None
    waste_mean_bytes: float
    waste_worst_bytes: int
    waste_mean_tokens: float
    waste_share: float
    calls_per_step: float
    map_us_per_step: float
    calls_per_admission: float
    map_us_per_admission: float
    unmap_us_per_admission: float | None
    zero_us_per_step: float | None
    step_us: float
    map_share: float

    @property
    def hidden(self) -> bool:
        """Whether the step's mapping can be hidden behind the step."""
        return self.map_share <= HIDEABLE_SHARE

    @property
    def read_ahead_tokens(self) -> int:
        """Tokens of the pages that are mapped at a time; 0 where that is one page."""
        if self.growth_pages == 1:
            return 0
        return round(self.growth_pages * max(1.0, self.tokens_per_page))

    @property
    def refused(self) -> bool:
        """Whether the TLB rule refuses it."""
        return self.verdict is tlb.Verdict.REFUSE

    @property
    def loss(self) -> float | None:
        """Share of decode throughput given up: memory wasted plus kernel time lost."""
        return None if self.kernel_loss is None else self.waste_share + self.kernel_loss


def _least_step_us(spec: CacheSpec, costs: DriverCosts, workload: Workload) -> float:
    """Return the time that any decode step takes: to read what it must, and to run its layers."""
    read = workload.batch * workload.context * spec.token_bytes + workload.weight_bytes
    return max(read / (costs.read_gb_per_s * 1e3), spec.layers * LEAST_LAYER_US)


def evaluate(
    spec: CacheSpec,
    geometry: Geometry,
    costs: DriverCosts,
    workload: Workload,
    growth_pages: int = 1,
) -> Candidate:
    """Return the costs of ``geometry`` with ``growth_pages`` pages mapped at a time."""
    page, token = geometry.page_size, geometry.token_bytes
    # The end of a request falls on every multiple of gcd(page, token) alike.
    grain = gcd(page, token)
    guard = geometry.guard_tokens if costs.private_guard else 0
    # A token larger than a page takes several pages, neighbours in one extent.
    unit = max(page, token)
    ahead = (growth_pages - 1) * unit
    waste_mean = geometry.arenas * ((page - grain + ahead) / 2 + guard * token)
    growth = workload.batch * geometry.arenas * min(1.0, token / page) / growth_pages
    step_calls, step_map_us = costs.map_cost(growth, growth_pages * unit, page)
    prompt_bytes = geometry.pages(workload.prompt + guard) * page
    admission_calls, admission_us = costs.map_cost(geometry.arenas, prompt_bytes, page)
    zeroed = workload.batch * spec.token_bytes
    step_us = _least_step_us(spec, costs, workload)
    verdict = tlb.judge(geometry, costs.page_table)
    return Candidate(
        layout=geometry.layout,
        layout_name=geometry.layout_name,
        layers_per_arena=geometry.layers_per_arena,
        page_size=page,
        growth_pages=growth_pages,
        arenas=geometry.arenas,
        token_bytes=token,
        tokens_per_page=geometry.tokens_per_page,
        tokens_per_entry=tlb.tokens_per_entry(geometry) if costs.page_table else None,
        verdict=verdict,
        kernel_loss=tlb.kernel_loss(geometry, verdict, costs.losses),
        waste_mean_bytes=waste_mean,
        waste_worst_bytes=geometry.arenas * (page - grain + ahead + guard * token),
        waste_mean_tokens=waste_mean / spec.token_bytes,
        waste_share=waste_mean / (workload.context * spec.token_bytes + waste_mean),
        calls_per_step=step_calls,
        map_us_per_step=step_map_us,
        calls_per_admission=admission_calls,
        map_us_per_admission=admission_us,
        unmap_us_per_admission=costs.unmap_cost_us(geometry.arenas, prompt_bytes, page),
        zero_us_per_step=zeroed / (costs.zero_gb_per_s * 1e3) if costs.zero_gb_per_s else None,
        step_us=step_us,
        map_share=step_map_us / step_us,
    )
