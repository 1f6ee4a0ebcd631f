# SPDX-License-Identifier: Apache-2.0
"""``bench plan``: the planner's choices, compared with what they cost on a trace.

Pure arithmetic over the lengths that the requests of a trace pass through while they
decode: the waste and the map calls of every candidate are counted length by length, where
the planner uses means. What calls and kernels cost comes from the same constants
as the plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from os import PathLike

from pyvattn.arguments import Settings, check_type
from pyvattn.bench.report import Measure
from pyvattn.geometry import Geometry
from pyvattn.machine import identify
from pyvattn.planner import (
    Candidate,
    DriverCosts,
    Plan,
    Workload,
    plan,
    use_calibration,
)
from pyvattn.planner.candidate import HIDEABLE_SHARE
from pyvattn.planner.explain import describe
from pyvattn.spec import CacheSpec
from pyvattn.traces import Trace, read_trace, synthetic_trace

DRIVERS = ("patched", "stock-uvm", "cumem")
_GUARDS = (0, 192)


@dataclass(frozen=True)
class Model:
    """A model as one rank sees it; ``weights`` are the bytes that a step reads of it."""

    name: str
    spec: CacheSpec
    weights: int


def _models() -> tuple[Model, ...]:
    """Shapes and parameter counts as their authors publish them, bf16."""
    llama = CacheSpec(32, 8, 128)
    return (
        Model("Llama-3-8B", llama, 2 * 8_030_000_000),
        Model("Llama-3-8B, TP 8", llama.shard(8), 2 * 8_030_000_000 // 8),
        Model("Qwen2.5-32B", CacheSpec(64, 8, 128), 2 * 32_800_000_000),
        Model("DeepSeek-V2-Lite (MLA)", CacheSpec.mla(layers=27), 2 * 15_700_000_000),
        Model("Llama-3.2-1B", CacheSpec(16, 8, 64), 2 * 1_240_000_000),
    )


@dataclass(frozen=True)
class Options(Settings):
    """``trace`` is a CSV file, or None for a synthetic trace; ``batch`` requests decode."""

    trace: str | PathLike[str] | None = None
    batch: int = 256


@dataclass(frozen=True)
class Counted:
    """One candidate over the trace: means over requests and steps."""

    candidate: Candidate
    waste_tokens: float
    waste_share: float
    calls_per_step: float
    map_share: float

    @property
    def loss(self) -> float | None:
        """Memory wasted plus kernel time lost; None where it may not be chosen."""
        if self.candidate.kernel_loss is None or self.map_share > HIDEABLE_SHARE:
            return None
        return self.waste_share + self.candidate.kernel_loss


def measure(options: Options) -> Iterator[Measure]:
    """Yield every measure."""
    check_type("options", options, Options)
    trace = read_trace(options.trace) if options.trace else synthetic_trace()
    visits = lengths_of(trace)
    requests = len(trace.requests)
    load = Workload(
        batch=options.batch,
        prompt=max(1, round(sum(r.prompt for r in trace.requests) / requests)),
        generated=max(1, round(sum(r.generated for r in trace.requests) / requests)),
    )
    here = identify()
    for model in _models():
        for driver in DRIVERS:
            costs = use_calibration(driver, here)
            for guard in _GUARDS if costs.private_guard else _GUARDS[:1]:
                spec = replace(
                    model.spec,
                    guard_tokens=guard,
                    max_slots=options.batch,
                    max_tokens=trace.longest + 1,
                )
                workload = replace(load, weight_bytes=model.weights)
                title = f"{model.name}; {driver}; guard {guard}"
                yield from _judge(title, trace, spec, costs, workload, visits)
    yield from _fine_against_coarse(trace, visits)


def lengths_of(trace: Trace) -> list[int]:
    """Return how often a request has each length, from its prompt's to its last."""
    change = [0] * (trace.longest + 2)
    for request in trace.requests:
        change[request.prompt] += 1
        change[request.prompt + request.generated + 1] -= 1
    return list(accumulate(change[:-1]))


def count(
    candidate: Candidate,
    spec: CacheSpec,
    costs: DriverCosts,
    workload: Workload,
    visits: Sequence[int],
) -> Counted:
    """Count what a candidate costs over the lengths of a trace."""
    grouped = candidate.layers_per_arena if candidate.layout == "token" else None
    geometry = spec.geometry(candidate.layout, candidate.page_size, grouped)
    guard = spec.guard_tokens if costs.private_guard else 0
    held, used, grown, extents = _totals(geometry, guard, visits, candidate.growth_pages)
    steps = sum(visits)
    per_step = workload.batch * geometry.arenas / steps
    each = grown * geometry.page_size / extents if extents else geometry.page_size
    calls, map_us = costs.map_cost(extents * per_step, each, geometry.page_size)
    waste = geometry.arenas * (held * geometry.page_size - used * geometry.token_bytes) / steps
    return Counted(
        candidate,
        waste / spec.token_bytes,
        waste / (waste + used * spec.token_bytes / steps),
        calls,
        map_us / candidate.step_us,
    )


def _totals(
    geometry: Geometry, guard: int, visits: Sequence[int], at_a_time: int = 1
) -> tuple[int, int, int, int]:
    """Return pages held and tokens used, pages grown by and times grown; of one arena.

    Rows grow by whole multiples of ``at_a_time`` pages, or of that many tokens where a
    token is larger than a page.
    """
    unit = 1 if at_a_time == 1 else at_a_time * geometry.pages(1)
    held = used = grown = extents = 0
    before = -(-geometry.pages(guard) // unit) * unit
    for length, times in enumerate(visits):
        pages = -(-geometry.pages(length + guard) // unit) * unit
        held += times * pages
        used += times * length
        if pages > before:
            grown += times * (pages - before)
            extents += times
        before = pages
    return held, used, grown, extents


def _judge(
    title: str,
    trace: Trace,
    spec: CacheSpec,
    costs: DriverCosts,
    workload: Workload,
    visits: Sequence[int],
) -> Iterator[Measure]:
    def counted(made: Plan) -> tuple[Counted, Counted]:
        """Return the choice, and the candidate that loses least by the count."""
        found = [count(one, spec, costs, workload, visits) for one in made.candidates]
        able = [one for one in found if one.loss is not None] or found[:1]
        return found[0], min(able, key=lambda one: one.loss or 0.0)

    made = plan(spec, driver=costs.driver, workload=workload, costs=costs)
    choice, best = counted(made)
    name = describe(made.choice)
    yield Measure(f"{title}: waste of a live request", choice.waste_tokens, "tokens", note=name)
    yield Measure(
        f"{title}: counted / planned waste",
        choice.waste_tokens / made.choice.waste_mean_tokens if made.choice.waste_mean_tokens else 1,
        "times",
        note=f"{trace.label}: a request's end is not where the mean has it",
    )
    yield Measure(f"{title}: map calls of a step", choice.calls_per_step, "calls", note=name)
    if choice.loss is None or best.loss is None:
        return
    yield Measure(
        f"{title}: loss above the best candidate",
        100 * (choice.loss - best.loss),
        "points",
        at_most=1.0,
        note=describe(best.candidate),
    )


def _fine_against_coarse(trace: Trace, visits: Sequence[int]) -> Iterator[Measure]:
    """The waste of 64K pages over that of 2M pages, layout `layer`, Llama-3-8B."""
    model = _models()[0]
    steps = sum(visits)
    for guard in _GUARDS:
        spec = replace(model.spec, guard_tokens=guard, max_tokens=trace.longest + 1)
        wastes = []
        for size in ("64K", "2M"):
            geometry = spec.geometry("layer", size)
            held, used, *_ = _totals(geometry, guard, visits)
            wastes.append((held * geometry.page_size - used * geometry.token_bytes) / steps)
        yield Measure(
            f"{model.name}, layout layer, guard {guard}: waste of 64K pages / 2M pages",
            wastes[0] / wastes[1],
            "times",
            at_most=1 / 16 if guard == 0 else None,
            note=trace.label,
        )
