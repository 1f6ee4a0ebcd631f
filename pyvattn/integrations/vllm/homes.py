# SPDX-License-Identifier: Apache-2.0
"""Every block at an address of its own, mapped for good."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pyvattn.errors import UnsupportedError
from pyvattn.rows import RowMap

__all__ = ["Homes"]


class Homes:
    """Opens rows from ``first`` on that map ``blocks`` in order, as many as they take.

    ``behind``: a block that is mapped in the rest of the last of these rows, where nothing is
    otherwise.
    """

    def __init__(
        self, rows: RowMap, blocks: Sequence[int], first: int, behind: int | None = None
    ) -> None:
        self.rows = self.rows_for(len(blocks), rows.positions)
        for index in range(self.rows):
            at = index * rows.positions
            row = rows.open(blocks[at : at + rows.positions])
            if row != first + index:
                raise UnsupportedError(f"blocks from {at} on are in row {row}, not {first + index}")
            # Drivers zero fresh memory at every place where its first batch maps it: one first.
            rows.flush()
        rest = self.rows * rows.positions - len(blocks)
        if behind is not None and rest:
            rows.extend(first + self.rows - 1, [behind] * rest)
            rows.flush()
        geometry = rows.pool.geometry
        arenas = [rows.arena(index) for index in range(geometry.arenas)]
        self._pages = [
            arena.view(-1, geometry.page_size)[first * rows.positions :][: len(blocks)]
            for arena in arenas
        ]

    @staticmethod
    def rows_for(blocks: int, positions: int) -> int:
        """Return how many rows of so many positions the blocks fill."""
        return -(-blocks // positions)

    def copy(self, moves: Iterable[tuple[int, int]]) -> None:
        """Copy blocks, by their index, each from the first to the second.

        On the stream that is current, behind the kernels that wrote them.
        """
        for source, target in moves:
            for pages in self._pages:
                pages[target].copy_(pages[source])
