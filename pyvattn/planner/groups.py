# SPDX-License-Identifier: Apache-2.0
"""Plans for models whose layers differ: one page size, and a layout for each group of layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pyvattn.arguments import check_flag, check_type, check_whole
from pyvattn.errors import ArgumentError, SpecError
from pyvattn.geometry import Geometry, build_geometry
from pyvattn.kernels import KERNELS, kernel_named
from pyvattn.planner.choose import Plan, page_sizes, plan
from pyvattn.planner.costs import DriverCosts, default_costs
from pyvattn.spec import CacheSpec
from pyvattn.state_rows import state_rows
from pyvattn.text import shown


def plan_parts(
    spec: CacheSpec,
    *,
    driver: str,
    page_size: int | str = "auto",
    costs: DriverCosts | None = None,
    **options: Any,
) -> tuple[Plan, ...]:
    """Return a :func:`~pyvattn.planner.plan` for each of ``spec.parts``, all with one page size.

    Of the page sizes that no part's rules refuse, the one is taken that loses least over all
    parts, each by its bytes. ``options`` are those of :func:`~pyvattn.planner.plan`, which also
    says what is raised.
    """
    check_type("spec", spec, CacheSpec)
    check_type("costs", costs, DriverCosts, type(None))
    parts, costs = spec.parts, costs or default_costs(driver)
    if len(parts) == 1:
        return (plan(parts[0], driver=driver, page_size=page_size, costs=costs, **options),)
    tried: list[tuple[Plan, ...]] = []
    too_large: SpecError | None = None
    for size in page_sizes(costs, page_size):
        try:
            each = [
                plan(one, driver=driver, page_size=size, costs=costs, **options) for one in parts
            ]
        except SpecError as error:
            too_large = error
            continue
        tried.append(tuple(each))
    if too_large and not tried:
        raise too_large
    return min(tried, key=_preference)


def planned_geometries(spec: CacheSpec, plans: Sequence[Plan]) -> tuple[Geometry, ...]:
    """Return where the tokens of each part lie by its plan, in a ring where its group says so."""
    found = []
    for made, group in zip(plans, spec.groups or (None,), strict=True):
        chosen = made.choice
        layers = chosen.layers_per_arena if chosen.layout == "token" else None
        found.append(build_geometry(made.spec, chosen.layout, chosen.page_size, layers, group))
    return tuple(found)


def _preference(plans: Sequence[Plan]) -> tuple[float, ...]:
    """Return a sort key: the best page size has the least."""
    choices = [each.choice for each in plans]
    return (
        any(choice.refused for choice in choices),
        any(not choice.hidden for choice in choices),
        round(lost_share(plans), 3),
        sum(choice.calls_per_step for choice in choices),
    )


def lost_share(plans: Sequence[Plan]) -> float:
    """Return what the choices of all parts lose together, each by its bytes."""
    sizes = [each.spec.token_bytes for each in plans]
    lost = sum((each.choice.loss or 0.0) * each.spec.token_bytes for each in plans)
    return lost / sum(sizes)


def guarded_for(spec: CacheSpec, kernel: str) -> CacheSpec:
    """Return ``spec`` with the tail guard that an attention kernel needs, each group with its own.

    ``kernel`` is one of those that ``pyvattn info`` lists. Layers whose heads are too large for it
    have another, and all others that take such heads read no further than a row. Raises
    :class:`~pyvattn.errors.ArgumentError` for a kernel that is not known.
    """
    check_type("spec", spec, CacheSpec)
    names = [each.name for each in KERNELS]
    if not isinstance(kernel, str) or kernel not in names:
        raise ArgumentError(f"kernel={shown(kernel)}: use one of {', '.join(names)}")
    known = kernel_named(kernel)

    def guard(head_dim: int) -> int:
        too_large = known.most_head_dim is not None and head_dim > known.most_head_dim
        return 0 if too_large else known.guard_for(spec.itemsize)

    if not spec.groups:
        return replace(spec, guard_tokens=guard(spec.head_dim))
    groups = [replace(each, guard_tokens=guard(each.head_dim)) for each in spec.groups]
    return replace(spec, groups=groups)


def request_bytes(spec: CacheSpec, plans: Sequence[Plan]) -> float:
    """Return what a request of the planned load holds on average, its waste included."""
    total = float(spec.state_bytes)
    for made, window in zip(plans, spec.windows, strict=True):
        context = made.workload.context
        kept = context if window is None else min(window, context)
        total += kept * made.spec.token_bytes + made.choice.waste_mean_bytes
    return total


def held_bytes(
    spec: CacheSpec, geometries: Sequence[Geometry], tokens: int, private_guard: bool
) -> int:
    """Return the bytes of the whole pages that a request holds once it has ``tokens`` tokens.

    ``geometries`` are those of ``spec.parts``. Pages that are read ahead come on top, and
    while a prompt is computed so does what its newest chunk pushes out of the windows.
    """
    check_type("spec", spec, CacheSpec)
    check_type("geometries", geometries, Sequence)
    check_flag("private_guard", private_guard)
    tokens = check_whole("tokens", tokens)
    for geometry in geometries:
        check_type("geometries", geometry, Geometry)
    if len(geometries) != len(spec.parts):
        raise ArgumentError(
            f"geometries: {len(geometries)} of them for {len(spec.parts)} groups of layers: give "
            "that of each of spec.parts"
        )
    held = 0
    for window, geometry in zip(spec.windows, geometries, strict=True):
        guard = geometry.guard_tokens if private_guard else 0
        gone = 0 if window is None or geometry.ring_tokens else max(0, tokens - window)
        first = gone * geometry.token_bytes // geometry.page_size
        pages = geometry.pages(tokens + guard) - first if tokens else 0
        held += pages * geometry.arenas * geometry.page_size
    states = state_rows(spec, geometries[0].page_size)
    return held + states.row_bytes if tokens and states is not None else held
