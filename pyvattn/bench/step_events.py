# SPDX-License-Identifier: Apache-2.0
"""What the kernels of a step were for, by their names, and when none ran."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

ATTENTION, GEMM, NORMS, APPEND, SAMPLING, COPIES, OTHER = (
    "attention",
    "GEMM",
    "norms, rotary and SwiGLU",
    "append",
    "sampling",
    "copies and zeroing",
    "other kernels",
)
GAPS, MAPPING = "launch gaps", "mapping"
PARTS = (ATTENTION, GEMM, NORMS, APPEND, SAMPLING, COPIES, OTHER, GAPS, MAPPING)

# The first that is found in a name says what the kernel was for: those of CUDA, and torch's
# operators on the CPU.
_NAMES = (
    (APPEND, r"_append|index_put|index_elementwise"),
    (ATTENTION, r"flash|fmha|attention|attn|attend|_find_largest|_quantise"),
    (GEMM, r"gemm|gemv|nvjet|cublas|cutlass|wgmma|splitk|triton_tem|aten::(add)?b?m[mv]$"),
    (SAMPLING, r"arg_?max|softmax|top_?k|sort|multinomial"),
    (NORMS, r"triton_"),  # fused by torch.compile, copies and all
    (COPIES, r"memcpy|memset|copy|fill|zero_"),
    (OTHER, r"embedding|index|gather|scatter|arange"),
    (NORMS, r"norm|rotary|silu|mean|rsqrt|pow|reduce|elementwise|cat"
            r"|aten::(mul|add|sub|neg|div)_?$"),
)  # fmt: skip
_PATTERNS = tuple((part, re.compile(pattern, re.IGNORECASE)) for part, pattern in _NAMES)


@dataclass(frozen=True)
class KernelEvent:
    """A kernel that ran, from ``start`` to ``end`` in seconds of any clock."""

    name: str
    start: float
    end: float


def part_of(name: str) -> str:
    """Return what a kernel is for, one of :data:`PARTS`."""
    return next((part for part, known in _PATTERNS if known.search(name)), OTHER)


def seconds_by_part(
    events: Iterable[KernelEvent], seconds: float, waited: float
) -> dict[str, float]:
    """Divide ``seconds`` of steps among :data:`PARTS`.

    ``waited`` of them the host waited for memory to be mapped, while no kernel ran. Where kernels
    ran at once, the time goes to the one that began first.
    """
    found = dict.fromkeys(PARTS, 0.0)
    busy_until = float("-inf")
    for event in sorted(events, key=lambda event: event.start):
        alone = max(0.0, event.end - max(event.start, busy_until))
        found[part_of(event.name)] += alone
        busy_until = max(busy_until, event.end)
    idle = max(0.0, seconds - sum(found.values()))
    found[MAPPING] = min(waited, idle)
    found[GAPS] = idle - found[MAPPING]
    return found


def names_of(events: Sequence[KernelEvent], part: str, most: int = 5) -> list[str]:
    """Return the names of the kernels of a part that took longest together."""
    total: dict[str, float] = {}
    for event in events:
        if part_of(event.name) == part:
            total[event.name] = total.get(event.name, 0.0) + event.end - event.start
    return sorted(total, key=lambda name: -total[name])[:most]
