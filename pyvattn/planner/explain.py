# SPDX-License-Identifier: Apache-2.0
"""Puts a plan into words."""

from __future__ import annotations

from collections.abc import Iterator

from pyvattn.planner import tlb
from pyvattn.planner.candidate import HIDEABLE_SHARE, Candidate
from pyvattn.planner.costs import DriverCosts
from pyvattn.planner.workload import Workload
from pyvattn.spec import CacheSpec
from pyvattn.units import format_page_size, format_size


def summary(spec: CacheSpec, costs: DriverCosts, workload: Workload, choice: Candidate) -> str:
    """Return what ``choice`` is, what it costs and why it may be taken."""
    kind = "measured" if costs.measured else "estimated"
    return "\n".join(
        [
            f"{costs.driver}: {describe(choice)}.",
            *_figures(spec, costs, workload, choice),
            *_reasons(choice),
            f"Costs of calls are {kind} ({costs.source}).",
            *([f"A calibration was not used: {costs.ignored}."] if costs.ignored else []),
        ]
    )


def describe(candidate: Candidate) -> str:
    """Name a candidate: layout and page size."""
    name = f"layout {candidate.layout_name}, {format_page_size(candidate.page_size)} pages"
    if candidate.growth_pages > 1:
        return f"{name}, {candidate.growth_pages} mapped at a time"
    return name


def rejection(candidate: Candidate) -> str:
    """Return what speaks against ``candidate``, in a few words."""
    if candidate.refused:
        entry = format_page_size(tlb.entry_size(candidate.page_size))
        return (
            f"{candidate.tokens_per_entry:.3g} tokens in each {entry} page-table entry, "
            f"under {tlb.REFUSE_BELOW}: TLB misses"
        )
    if not candidate.hidden:
        return f"mapping takes {candidate.map_share:.0%} of the least step"
    assert candidate.kernel_loss is not None
    return (
        f"gives up {candidate.loss:.1%} ({candidate.waste_share:.1%} memory, "
        f"{candidate.kernel_loss:.1%} kernel time)"
    )


def tlb_reason(candidate: Candidate) -> str:
    """Return what the TLB rule has against ``candidate``."""
    entry = format_page_size(tlb.entry_size(candidate.page_size))
    found = f"kernels find {candidate.tokens_per_entry:.3g} tokens in each {entry} page-table entry"
    if candidate.refused:
        return (
            f"{found}, and under {tlb.REFUSE_BELOW} TLB misses slow them down (decode by 5 % was "
            "measured at 8, 6 to 12 times at 0.5 to 1)"
        )
    return f"{found}: expect them to lose {candidate.kernel_loss or 0:.0%} in decode"


def hiding_reason(candidate: Candidate) -> str:
    """Return why ``candidate``'s map calls cannot be hidden."""
    return (
        f"mapping takes {candidate.map_us_per_step / 1e3:.3g} ms of a step that may be as short "
        f"as {candidate.step_us / 1e3:.3g} ms, more than the {HIDEABLE_SHARE:.0%} that can be "
        "hidden"
    )


def _figures(
    spec: CacheSpec, costs: DriverCosts, workload: Workload, choice: Candidate
) -> Iterator[str]:
    yield (
        f"{choice.arenas} arena{'s' if choice.arenas > 1 else ''}; a token takes "
        f"{format_size(choice.token_bytes)} in each, {format_size(spec.token_bytes)} in all; "
        f"{choice.tokens_per_page:.3g} tokens in a page."
    )
    yield (
        f"A request wastes {format_size(choice.waste_mean_bytes)} "
        f"({choice.waste_mean_tokens:.3g} tokens) on average, at most "
        f"{format_size(choice.waste_worst_bytes)}: {choice.waste_share:.1%} of what it holds at "
        f"{workload.context:.0f} tokens."
    )
    if costs.private_guard and spec.guard_tokens:
        held = workload.context + choice.waste_mean_tokens
        more = spec.guard_tokens / (held - spec.guard_tokens)
        yield (
            f"Of that, {spec.guard_tokens} tokens are the tail guard, which {costs.driver} cannot "
            f"share: {more:.0%} more requests fit where a kernel needs none."
        )
    yield (
        f"Map calls: {choice.calls_per_step:.3g} for a step of {workload.batch} requests "
        f"({choice.map_us_per_step / 1e3:.3g} ms), {choice.calls_per_admission:.3g} to admit "
        f"{workload.prompt} tokens ({choice.map_us_per_admission / 1e3:.3g} ms)."
    )
    if choice.unmap_us_per_admission is not None:
        yield (
            "Where their pages have to be taken from other slots, unmapping takes "
            f"{choice.unmap_us_per_admission / 1e3:.3g} ms more."
        )
    if choice.zero_us_per_step is not None:
        yield f"Zeroing what a step takes: {choice.zero_us_per_step / 1e3:.3g} ms on the device."
    if choice.growth_pages > 1:
        yield (
            f"Rows grow {choice.growth_pages} pages at a time where memory is free: "
            f'KVCache(read_ahead={choice.read_ahead_tokens}), which is what "auto" takes.'
        )


def _reasons(choice: Candidate) -> Iterator[str]:
    if choice.verdict is tlb.Verdict.NO_RULE:
        yield "There is no TLB rule on the host: CPUs read 4K pages and small strides well."
    elif choice.verdict is tlb.Verdict.OK:
        entry = format_page_size(tlb.entry_size(choice.page_size))
        yield f"Kernels find {choice.tokens_per_entry:.3g} tokens in each {entry} page-table entry."
    else:
        reason = tlb_reason(choice)
        yield f"{reason[0].upper()}{reason[1:]}."
    if choice.hidden:
        yield (
            f"Mapping takes {choice.map_share:.1%} of the least time a step can take "
            f"({choice.step_us / 1e3:.3g} ms): it can be hidden."
        )
    else:
        reason = hiding_reason(choice)
        yield f"{reason[0].upper()}{reason[1:]}."
