# SPDX-License-Identifier: Apache-2.0
"""What single requests hold in the pages that were planned, and how many fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyvattn.cli.output import table
from pyvattn.planner import Plan, held_bytes
from pyvattn.planner.groups import planned_geometries, request_bytes
from pyvattn.spec import CacheSpec
from pyvattn.units import format_size

# As far as the model takes them: a question, a chat, a book.
_SHOWN_TOKENS = (12, 2_000, 100_000)

Parts = Sequence[Plan]
"""The plans of one driver, one for each group of layers."""


def held(spec: CacheSpec, parts: Parts, tokens: int) -> int:
    """Return the bytes that a request of ``tokens`` tokens holds in the pages of ``parts``."""
    geometries = planned_geometries(spec, parts)
    return held_bytes(spec, geometries, tokens, parts[0].costs.private_guard)


def requests_held(spec: CacheSpec, plans: Sequence[Parts]) -> list[dict[str, Any]]:
    """Return what requests of a few lengths need, and hold with each driver's plans."""
    return [
        {
            "tokens": tokens,
            "needed": spec.bytes_at(tokens),
            "held": {parts[0].costs.driver: held(spec, parts, tokens) for parts in plans},
        }
        for tokens in _SHOWN_TOKENS
        if tokens <= spec.max_tokens
    ]


def held_table(found: Sequence[dict[str, Any]]) -> Any:
    """Return what :func:`requests_held` found as a table."""
    drivers = list(found[0]["held"])
    return table(
        "What a request holds: its tokens alone, and in whole pages with the tail guard",
        ("tokens", "alone", *drivers),
        [
            (
                str(one["tokens"]),
                format_size(one["needed"]),
                *map(format_size, one["held"].values()),
            )
            for one in found
        ],
    )


def fits(spec: CacheSpec, parts: Parts, memory: int) -> int:
    """Return how many requests of the planned load fit in ``memory`` bytes."""
    return int(memory / request_bytes(spec, parts))
