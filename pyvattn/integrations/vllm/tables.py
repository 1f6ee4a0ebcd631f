# SPDX-License-Identifier: Apache-2.0
"""vLLM's block tables, whose ids are positions of rows.

The scheduler's ids stay what they are; here each is a block to map, from the moment it arrives: the
runner waits for it before the model runs. The classes are mixed
into those that vLLM built: ``v1/worker/gpu/block_table.py`` (runner V2) and
``v1/worker/block_table.py`` (V1).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from pyvattn.integrations.vllm.memory import RowMemory
from pyvattn.integrations.vllm.requests import RequestRows

__all__ = ["TableV1", "TableV2", "TablesV1", "adopt_table"]


class _Table:
    _memory: RowMemory

    def use_rows(self, memory: RowMemory) -> None:
        """Begin, with no requests."""
        self._memory = memory
        self._computed: deque[int] = deque()

    @contextmanager
    def adding(self, computed: Iterable[int]) -> Iterator[None]:
        """Say of how many tokens the blocks of the requests hold KV that begin meanwhile.

        One number for each, in their order; without a number all blocks may hold some.
        """
        self._computed.extend(computed)
        try:
            yield
        finally:
            # One that is left would be taken for that of another request.
            self._computed.clear()

    def _next_computed(self) -> int | None:
        return self._computed.popleft() if self._computed else None


class TableV2(_Table):
    """Of runner V2, for all groups of layers: a request keeps its index as long as it lives."""

    def use_rows(self, memory: RowMemory) -> None:
        """Begin, with no requests."""
        super().use_rows(memory)
        self._groups: list[RequestRows] = []

    def append_block_ids(
        self, req_index: int, new_block_ids: tuple[list[int], ...], overwrite: bool
    ) -> None:
        """Map the blocks in the request's rows, one for each group, and write their ids."""
        while len(self._groups) < len(new_block_ids):
            self._groups.append(RequestRows(self._memory))
        groups = zip(self._groups, map(list, new_block_ids), strict=True)
        if overwrite:
            computed = self._next_computed()
            ids = [rows.open(req_index, blocks, computed) for rows, blocks in groups]
        else:
            ids = [rows.extend(req_index, blocks) for rows, blocks in groups]
        super().append_block_ids(req_index, tuple(ids), overwrite)  # type: ignore[misc]

    def row(self, req_index: int) -> int | None:
        """Return a request's row, in the first of the groups."""
        return self._groups[0].row(req_index) if self._groups else None

    def end_request(self, req_index: int) -> None:
        """Let other requests have the rows, which keep what they have mapped."""
        for rows in self._groups:
            rows.close(req_index)


class TableV1(_Table):
    """Of one group of layers in runner V1, which moves requests to keep its batch dense."""

    def use_rows(self, memory: RowMemory) -> None:
        """Begin, with no requests."""
        super().use_rows(memory)
        self._requests = RequestRows(memory)

    def row(self, row_idx: int) -> int | None:
        """Return a request's row."""
        return self._requests.row(row_idx)

    def add_row(self, block_ids: list[int], row_idx: int) -> None:
        """Begin a request, whose blocks are all named."""
        ids = self._requests.open(row_idx, list(block_ids), self._next_computed())
        self.num_blocks_per_row[row_idx] = 0  # type: ignore[attr-defined]
        super().append_row(ids, row_idx)  # type: ignore[misc]

    def append_row(self, block_ids: list[int], row_idx: int) -> None:
        """Add blocks to a request."""
        if block_ids:
            ids = self._requests.extend(row_idx, list(block_ids))
            super().append_row(ids, row_idx)  # type: ignore[misc]

    def clear_row(self, row_idx: int) -> None:
        """End a request."""
        self._requests.close(row_idx)
        super().clear_row(row_idx)  # type: ignore[misc]

    def move_row(self, src: int, tgt: int) -> None:
        """Keep the rows with their requests."""
        self._requests.move(src, tgt)
        super().move_row(src, tgt)  # type: ignore[misc]

    def swap_row(self, src: int, tgt: int) -> None:
        """Keep the rows with their requests."""
        self._requests.swap(src, tgt)
        super().swap_row(src, tgt)  # type: ignore[misc]


class TablesV1:
    """Of runner V1, with a table for each group: ``MultiGroupBlockTable``."""

    def use_rows(self, memory: RowMemory) -> None:
        """Have each table begin, with no requests."""
        for table in self.block_tables:  # type: ignore[attr-defined]
            adopt_table(table, TableV1, memory)

    def row(self, row_idx: int) -> int | None:
        """Return a request's row, in the first of the groups."""
        row: int | None = self.block_tables[0].row(row_idx)  # type: ignore[attr-defined]
        return row

    @contextmanager
    def adding(self, computed: Iterable[int]) -> Iterator[None]:
        """Say it to each group's table: see :meth:`TableV1.adding`."""
        numbers = list(computed)
        with ExitStack() as tables:
            for table in self.block_tables:  # type: ignore[attr-defined]
                tables.enter_context(table.adding(numbers))
            yield


def adopt_table(table: Any, mixin: type[_Table | TablesV1], memory: RowMemory) -> None:
    """Make a table that vLLM built write positions of rows from here on."""
    built = type(table)
    if not issubclass(built, mixin):
        table.__class__ = type(f"Row{built.__name__}", (mixin, built), {})
    table.use_rows(memory)
