# SPDX-License-Identifier: Apache-2.0
"""The KV memory of a worker, in which fresh ids get the blocks that rows have mapped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pyvattn.integrations.vllm.homes import Homes
from pyvattn.integrations.vllm.late_binding import LateBinding, Move
from pyvattn.integrations.vllm.memory import NULL_BLOCK, RowMemory

__all__ = ["LateRowMemory"]


class LateRowMemory(RowMemory):
    """See :mod:`.late_binding`: fewer blocks are mapped, and some are copied instead.

    Copies are made on the stream that is current in :meth:`open` and :meth:`extend`, which must
    be the one of the kernels that write and read the blocks.
    """

    def open(self, blocks: list[int], computed: int | None = None) -> int:
        """Stage a row; all but the blocks of the first ``computed`` tokens may be exchanged."""
        whole = len(blocks) if computed is None else -(-computed // self.sizes.block_size)
        with self._copying(self._binding.bind(blocks, whole)):
            row = super().open(blocks, computed)
        self._binding.open(row, blocks)
        self._note_tail(row)
        return row

    def extend(self, row: int, blocks: list[int]) -> None:
        """Stage more blocks at the end of a row, which hold nothing yet."""
        with self._copying(self._binding.bind_more(row, blocks)):
            super().extend(row, blocks)
        self._binding.extend(row, blocks)
        self._note_tail(row)

    def close(self, row: int) -> None:
        """End a row, whose mappings the next request gets."""
        super().close(row)
        self._binding.close(row)
        # No driver call: but a row that is opened again before join() loses what lies behind.
        self._is_staged = True

    def join(self) -> None:
        """Return once every open row has its blocks; raises a ``DriverError`` that says why not."""
        super().join()
        self._binding.end_step()

    def stats(self) -> dict[str, int | float]:
        """Count also the blocks that were copied."""
        return {**super().stats(), "pages_copied": self.pages_copied}

    def reset_stats(self) -> None:
        """Count from here on."""
        super().reset_stats()
        self.pages_copied = 0

    @contextmanager
    def _copying(self, moves: list[Move]) -> Iterator[None]:
        """Launch the copies behind what is staged: it is mapped meanwhile."""
        try:
            yield
        finally:
            # Contents follow their ids, whether or not there was a row.
            self._homes.copy(moves)
            self.pages_copied += len(moves)

    def _note_tail(self, row: int) -> None:
        if row in self._guards:
            self._binding.forget_tail(row)

    def _named(self, blocks: list[int]) -> list[int]:
        return [self._blocks[page] for page in self._binding.pages(blocks)]

    def _rows_of_blocks(self) -> int:
        return Homes.rows_for(self.sizes.blocks, self.positions)

    def _touch_blocks(self) -> None:
        """Map each block once, for good."""
        self._homes = Homes(self.rows, self._blocks, first=NULL_BLOCK + 1)
        self._binding = LateBinding(self.sizes.blocks, self.sizes.rows - 1)
        self._binding.hold(NULL_BLOCK)
