# SPDX-License-Identifier: Apache-2.0
"""Chooses a page size and a layout by a stated cost model.

1. The TLB rule (:mod:`pyvattn.planner.tlb`) refuses what makes kernels crawl.
2. The calls that a decode step needs must be hideable: at most half of the
   least time that the step can take, which is that of reading its KV cache
   (and the weights, where they are given) once, or 10 µs a layer.
3. Of what remains, the least loss wins: the share of memory that a request
   wastes, which other requests could have used, plus the share of decode time
   that kernels lose. Losses equal to 0.1 percentage points are a tie, and go
   to fewer driver calls.

Where the calls for one page at a time cannot be hidden, the fewest pages are mapped at a
time that can. Where nothing passes, the planner takes what comes nearest and warns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from pyvattn.arguments import check_name, check_type
from pyvattn.errors import ConfigError, SpecError
from pyvattn.geometry import Geometry, check_layout, check_page_size, tensors_are_alike
from pyvattn.planner import explain
from pyvattn.planner.candidate import Candidate, evaluate
from pyvattn.planner.costs import DriverCosts, default_costs
from pyvattn.planner.workload import Workload, typical_workload
from pyvattn.spec import CacheSpec
from pyvattn.text import shown
from pyvattn.units import format_page_size
from pyvattn.whole_numbers import whole_number

_TIE = 0.001
# What kernels lose from here on is worth a warning to who asked for it by name.
_NOTICEABLE = 0.02

# Numbers of pages to map at a time where a row grows.
GROWTH_PAGES = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Plan:
    """A choice, what it was chosen from (best first), and what there is to warn of."""

    spec: CacheSpec
    costs: DriverCosts
    workload: Workload
    choice: Candidate
    candidates: tuple[Candidate, ...]
    warnings: tuple[str, ...]

    def geometry(self) -> Geometry:
        """Where tokens lie by the choice."""
        chosen = self.choice
        layers = chosen.layers_per_arena if chosen.layout == "token" else None
        return self.spec.geometry(chosen.layout, chosen.page_size, layers)

    @property
    def explanation(self) -> str:
        """Why this choice and not another, in plain text."""
        return "\n".join([self.summary, *self.rejections])

    @property
    def summary(self) -> str:
        """Why this choice, in a few lines of plain text."""
        return explain.summary(self.spec, self.costs, self.workload, self.choice)

    @property
    def rejections(self) -> tuple[str, ...]:
        """Why each of the others was not taken, one line each."""
        return tuple(
            f"Not {explain.describe(c)}: {explain.rejection(c)}."
            for c in self.candidates
            if c is not self.choice
        )


def plan(
    spec: CacheSpec,
    *,
    driver: str,
    page_size: int | str = "auto",
    layout: str = "auto",
    layers_per_arena: int | None = None,
    growth_pages: Sequence[int] | None = None,
    workload: Workload | None = None,
    costs: DriverCosts | None = None,
) -> Plan:
    """Choose ``page_size`` and ``layout`` for ``spec`` on ``driver``; pure arithmetic.

    What is given by name is kept, and warned of where the rules would not have
    it. ``growth_pages`` are numbers of pages to try that are mapped at a time where
    a row grows; by default each candidate has the least that hides its mapping.
    ``workload`` is by default the mean request of the Azure conversation trace,
    and ``costs`` are the built-in constants of ``driver``.

    Raises :class:`~pyvattn.errors.ArgumentError` for arguments of other types,
    :class:`~pyvattn.errors.ConfigError` for a driver, page size or layout
    that does not exist, and :class:`~pyvattn.errors.SpecError` where ``spec`` takes too
    many addresses in pages of every size.
    """
    check_type("spec", spec, CacheSpec)
    check_type("workload", workload, Workload, type(None))
    check_type("costs", costs, DriverCosts, type(None))
    check_type("growth_pages", growth_pages, Sequence, type(None))
    check_name("layout", layout, such_as="auto")
    tried = GROWTH_PAGES if growth_pages is None else growth_pages
    if bad := [pages for pages in tried if (whole_number(pages) or 0) < 1]:
        raise ConfigError(f"growth_pages={shown(bad[0])}: use whole numbers of pages from 1")
    if not tried:
        raise ConfigError("growth_pages names no number of pages: give one at least, or None")
    costs = costs or default_costs(driver)
    workload = workload or typical_workload(spec)
    if not isinstance(page_size, str):
        page_size = check_page_size(page_size)
    sizes = page_sizes(costs, page_size)
    layouts = list(_layouts(spec, layout, layers_per_arena))
    found: list[Candidate] = []
    too_large: SpecError | None = None
    for size in sizes:
        for name, group in layouts:
            # Without a page table there is nothing that arenas of a few layers could gain.
            if layout == "auto" and group is not None and not costs.page_table:
                continue
            try:
                geometry = spec.geometry(name, size, group)
            except SpecError as error:
                too_large = error
                continue
            each = (evaluate(spec, geometry, costs, workload, pages) for pages in tried)
            found += [_first_hidden(each)] if growth_pages is None else each
    if too_large and not found:
        raise too_large
    ranked = tuple(sorted(found, key=_preference))
    choice = ranked[0]
    by_name = page_size != "auto" or layout != "auto"
    return Plan(spec, costs, workload, choice, ranked, tuple(_warnings(choice, by_name)))


def _first_hidden(found: Iterable[Candidate]) -> Candidate:
    """Return the first whose mapping can be hidden; where none can, what comes nearest."""
    passed = []
    for candidate in found:
        if candidate.hidden:
            return candidate
        passed.append(candidate)
    return min(passed, key=lambda candidate: candidate.map_share)


def page_sizes(costs: DriverCosts, wanted: int | str) -> tuple[int, ...]:
    """Return the page sizes to try on a driver: those that it has, or the one wanted."""
    if wanted == "auto":
        return costs.page_sizes
    size = check_page_size(wanted)
    if size not in costs.page_sizes:
        offered = ", ".join(map(format_page_size, costs.page_sizes))
        raise ConfigError(
            f"driver {costs.driver!r} has no pages of {format_page_size(size)}: use one of "
            f"{offered}, or 'auto'"
        )
    return (size,)


def _layouts(
    spec: CacheSpec, wanted: str, layers_per_arena: int | None
) -> Iterator[tuple[str, int | None]]:
    if wanted != "auto":
        yield check_layout(wanted), layers_per_arena
        return
    if layers_per_arena is not None:
        raise ConfigError(f"layers_per_arena={shown(layers_per_arena)} needs layout='token'")
    yield "layer", None
    yield "token", None
    # With one arena a layer, one layer in an arena is what layout `layer` is.
    apart = spec.tensors_per_layer > 1 and tensors_are_alike(spec)
    for group in range(1 if apart else 2, spec.layers):
        if spec.layers % group == 0:
            yield "token", group


def _preference(candidate: Candidate) -> tuple[float, ...]:
    """Return a sort key: the best candidate has the least."""
    per_entry = candidate.tokens_per_entry or 0.0
    loss = candidate.loss
    return (
        candidate.refused,
        -per_entry if candidate.refused else 0.0,
        0.0 if candidate.hidden else candidate.map_share,
        0.0 if loss is None else round(loss / _TIE),
        candidate.calls_per_step,
        candidate.waste_mean_bytes,
        candidate.growth_pages,
    )


def _warnings(choice: Candidate, by_name: bool) -> Iterator[str]:
    name = explain.describe(choice)
    # What the planner itself weighed against the rest deserves no alarm.
    slow = by_name and (choice.kernel_loss or 0) > _NOTICEABLE
    if choice.refused or slow:
        yield f"{name}: {explain.tlb_reason(choice)}"
    if not choice.hidden:
        yield f"{name}: {explain.hiding_reason(choice)}"
