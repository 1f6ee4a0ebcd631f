# SPDX-License-Identifier: Apache-2.0
"""What each attention kernel costs a plan, in a line and as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyvattn.cli.output import table
from pyvattn.planner import KernelChoice
from pyvattn.planner.kernel_choice import TIMES_SOURCE


def choice_line(weighed: Sequence[KernelChoice]) -> str:
    """Say which kernel is recommended, and what it and the others give up."""
    best, *others = weighed
    rest = ", ".join(f"{each.name} {each.loss:.1%}" for each in others)
    return (
        f"Of FlashAttention-3's forms on Hopper {best.name} is recommended: it gives up "
        f"{best.loss:.1%} of memory and decode time together{f', {rest}' if rest else ''}. "
        f"Times are measured ({TIMES_SOURCE})."
    )


def choice_table(weighed: Sequence[KernelChoice], memory: int | None) -> Any:
    """Return a row for each kernel; where ``memory`` is known, with how many requests fit."""
    least = min(each.request_bytes for each in weighed)
    return table(
        "Requests that fit, and time of attention over flash-attn-3's",
        ("kernel", "guard", "requests", "decode", "prompt", "loss"),
        [
            (
                each.name,
                str(each.guard_tokens),
                f"{least / each.request_bytes:.1%}"
                if memory is None
                else str(int(memory / each.request_bytes)),
                f"{each.decode:.2f}",
                f"{each.prefill:.2f}",
                f"{each.loss:.1%}",
            )
            for each in weighed
        ],
    )


def choice_as_dict(choice: KernelChoice, memory: int | None) -> dict[str, Any]:
    """Return a choice for JSON."""
    found = {
        "kernel": choice.name,
        "guard_tokens": choice.guard_tokens,
        "request_bytes": choice.request_bytes,
        "decode": choice.decode,
        "prefill": choice.prefill,
        "loss": choice.loss,
        "times": TIMES_SOURCE,
    }
    return found if memory is None else {**found, "fits": int(memory / choice.request_bytes)}
