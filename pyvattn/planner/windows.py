# SPDX-License-Identifier: Apache-2.0
"""How layers keep their window: in rows whose front is trimmed, or in rings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pyvattn.arguments import check_type
from pyvattn.errors import ArgumentError
from pyvattn.geometry import build_geometry
from pyvattn.layer_group import LayerGroup
from pyvattn.planner.candidate import HIDEABLE_SHARE, LEAST_LAYER_US
from pyvattn.planner.choose import Plan
from pyvattn.spec import CacheSpec


@dataclass(frozen=True)
class WindowChoice:
    """Whether layers with a window are to keep it in a ``ring``, and why (``reason``).

    Trimming takes ``calls`` map calls a token and request once the window is full, and as many to
    unmap; a ring takes none. ``trim_share`` is the time of all calls of a step, growth and trimming
    of all groups together, over the least time of a step. A request that has outgrown the window
    holds ``ring_tokens`` in a ring and ``window`` tokens, and a page, where it is trimmed.
    """

    ring: bool
    window: int
    ring_tokens: int
    calls: float
    trim_share: float
    reason: str


def window_choices(spec: CacheSpec, plans: Sequence[Plan]) -> tuple[WindowChoice | None, ...]:
    """Return how each of ``spec.parts`` is to keep its window; ``None`` where it has none.

    ``plans`` are those of :func:`~pyvattn.planner.plan_parts`. A ring is right where requests
    outgrow it and a step's driver calls cannot be hidden while windows are trimmed. Where they can,
    trimming holds less. Raises :class:`~pyvattn.errors.ArgumentError` for plans of another spec.
    """
    check_type("spec", spec, CacheSpec)
    check_type("plans", plans, Sequence)
    for made in plans:
        check_type("plans", made, Plan)
    if len(plans) != len(spec.parts):
        raise ArgumentError(
            f"plans: {len(plans)} of them for {len(spec.parts)} groups of layers: give those of "
            "plan_parts(spec)"
        )
    share = _share(spec, plans)
    groups = spec.groups or (None,)
    return tuple(
        None if group is None or group.window is None else _choice(group, made, share)
        for group, made in zip(groups, plans, strict=True)
    )


def with_rings(spec: CacheSpec, plans: Sequence[Plan]) -> CacheSpec:
    """Return ``spec`` with rings where :func:`window_choices` has them, and nowhere else."""
    choices = window_choices(spec, plans)
    if not any(choices):
        return spec
    groups = [
        replace(group, ring=(group.ring or True) if choice is not None and choice.ring else False)
        for group, choice in zip(spec.groups, choices, strict=True)
    ]
    return replace(spec, groups=groups)


def _choice(group: LayerGroup, made: Plan, share: float) -> WindowChoice:
    window, context = group.window or 0, made.workload.prompt + made.workload.generated
    ring = _ring_tokens(group, made)
    calls = _extents(made) / made.workload.batch
    trimming = (
        f"trimming takes {calls:.2g} map calls a token and request and as many to unmap, with "
        f"growth {share:.0%} of the least step"
    )
    if not ring or context <= ring:
        length = f"a ring of {ring}" if ring else "a ring, which would be longer than a row"
        reason = f"trimmed: requests of {context:.0f} tokens do not outgrow {length}"
    elif share > HIDEABLE_SHARE:
        reason = (
            f"a ring of {ring} tokens: {trimming}, more than the {HIDEABLE_SHARE:.0%} that can be "
            "hidden; a full ring takes none"
        )
    else:
        reason = (
            f"trimmed: {trimming}, which can be hidden, and a ring would hold {ring} tokens for "
            f"{window}"
        )
    return WindowChoice(
        ring=bool(ring) and context > ring and share > HIDEABLE_SHARE,
        window=window,
        ring_tokens=ring,
        calls=calls,
        trim_share=share,
        reason=reason,
    )


def _ring_tokens(group: LayerGroup, made: Plan) -> int:
    """Return how long a ring of two windows is in whole pages; 0 where rows are no longer."""
    choice = made.choice
    layers = choice.layers_per_arena if choice.layout == "token" else None
    ringed = replace(group, ring=group.ring or True)
    geometry = build_geometry(made.spec, choice.layout, choice.page_size, layers, ringed)
    return geometry.ring_tokens


def _share(spec: CacheSpec, plans: Sequence[Plan]) -> float:
    """Return the calls' share of a step in which every window is full and trimmed."""
    calls_us, read = 0.0, float(plans[0].workload.weight_bytes)
    for made, window in zip(plans, spec.windows, strict=True):
        load, choice, costs = made.workload, made.choice, made.costs
        tokens = load.context if window is None else min(window, load.context)
        read += load.batch * tokens * made.spec.token_bytes
        calls_us += choice.map_us_per_step
        if window is not None:
            extent = choice.growth_pages * max(choice.page_size, choice.token_bytes)
            unmap_us = costs.unmap_cost_us(_extents(made), extent, choice.page_size)
            # Where it was not measured an unmap is taken to cost what a map costs.
            calls_us += choice.map_us_per_step if unmap_us is None else unmap_us
    least = max(read / (plans[0].costs.read_gb_per_s * 1e3), spec.layers * LEAST_LAYER_US)
    return calls_us / least


def _extents(made: Plan) -> float:
    """Return how many runs of pages a step of the load needs: of a driver, a call each."""
    choice = made.choice
    pages = min(1.0, choice.token_bytes / choice.page_size)
    return made.workload.batch * choice.arenas * pages / choice.growth_pages
