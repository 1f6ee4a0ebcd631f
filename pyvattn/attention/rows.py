"""Rows whose slots follow each other: one view of the cache serves them all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def consecutive(slots: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Split rows into ``(first, end)`` such that the slots in between rise by one."""
    first = 0
    for row in range(1, len(slots) + 1):
        if row == len(slots) or slots[row] != slots[row - 1] + 1:
            yield first, row
            first = row
