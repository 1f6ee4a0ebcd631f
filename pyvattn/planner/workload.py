# SPDX-License-Identifier: Apache-2.0
"""The load that a plan is made for."""

from __future__ import annotations

from dataclasses import dataclass

from pyvattn.arguments import check_type, check_whole
from pyvattn.spec import CacheSpec

# Means of the Azure conversation trace of 2023.
TYPICAL_PROMPT = 1155
TYPICAL_GENERATED = 211
TYPICAL_BATCH = 256


@dataclass(frozen=True)
class Workload:
    """A steady decode load: ``batch`` requests of ``prompt`` tokens that each generate more.

    ``weight_bytes`` is what a step reads besides the KV cache. Zero counts the
    KV cache alone, which makes a step shorter than it is and the plan strict.
    """

    batch: int
    prompt: int = TYPICAL_PROMPT
    generated: int = TYPICAL_GENERATED
    weight_bytes: int = 0

    def __post_init__(self) -> None:
        for name, minimum in (("batch", 1), ("prompt", 1), ("generated", 1), ("weight_bytes", 0)):
            number = check_whole(name, getattr(self, name), minimum)
            object.__setattr__(self, name, number)

    @property
    def context(self) -> float:
        """Mean tokens of a request while it decodes."""
        return self.prompt + self.generated / 2


def typical_workload(spec: CacheSpec) -> Workload:
    """Return the Azure trace's mean request, scaled down to fit ``spec``."""
    check_type("spec", spec, CacheSpec)
    scale = min(1.0, spec.max_tokens / (TYPICAL_PROMPT + TYPICAL_GENERATED))
    return Workload(
        batch=min(spec.max_slots, TYPICAL_BATCH),
        prompt=max(1, int(TYPICAL_PROMPT * scale)),
        generated=max(1, int(TYPICAL_GENERATED * scale)),
    )
