# SPDX-License-Identifier: Apache-2.0
"""What a cache holds at one moment, and what other allocations hold for the same requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

BLOCK_TOKENS = 16
"""Tokens of a block of paged attention, as engines have it by default."""


@dataclass(frozen=True)
class Sample:
    """Memory after a step, in bytes, and the seconds since the start.

    ``used`` are the tokens of the live ``requests`` themselves, ``held`` what
    belongs to these requests, ``mapped`` all there is, what is kept for the next
    ones as well, and ``paged`` what a paged cache would hold, where that is known.
    """

    seconds: float
    requests: int
    used: int
    held: int
    mapped: int
    paged: int | None = None


def blocks_for(tokens: int, block_tokens: int) -> int:
    """Return the blocks of ``block_tokens`` tokens that hold ``tokens``."""
    return -(-tokens // block_tokens)


def paged_bytes(lengths: Sequence[int], token_bytes: int, block_tokens: int = BLOCK_TOKENS) -> int:
    """Return the bytes of a paged cache that holds ``lengths``."""
    blocks = sum(blocks_for(length, block_tokens) for length in lengths)
    return blocks * block_tokens * token_bytes


def static_bytes(slots: int, longest: int, token_bytes: int) -> int:
    """Return the bytes of a static cache: each of ``slots`` rows is a block for the longest."""
    return paged_bytes([longest] * slots, token_bytes, longest)
