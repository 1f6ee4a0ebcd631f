# SPDX-License-Identifier: Apache-2.0
"""vLLM's block tables, whose ids are positions of rows.

The scheduler's ids stay what they are; here each is a block to map. The classes are mixed
into those that vLLM built: ``v1/worker/gpu/block_table.py`` (runner V2) and
``v1/worker/block_table.py`` (V1).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from pyvattn.integrations.vllm.memory import RowMemory
from pyvattn.integrations.vllm.requests import RequestRows

__all__ = ["TableV1", "TableV2", "adopt_table"]


class _Table:
    _memory: RowMemory
    _requests: RequestRows

    def use_rows(self, memory: RowMemory) -> None:
        """Begin, with no requests."""
        self._memory = memory
        self._requests = RequestRows(memory)
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

    def _open(self, index: int, blocks: list[int]) -> list[int]:
        computed = self._computed.popleft() if self._computed else None
        return self._requests.open(index, blocks, computed)


class TableV2(_Table):
    """Of runner V2: a request keeps its index as long as it lives."""

    def append_block_ids(
        self, req_index: int, new_block_ids: tuple[list[int], ...], overwrite: bool
    ) -> None:
        """Map the blocks in the request's row, and write the row's ids."""
        (blocks,) = new_block_ids
        write = self._open if overwrite else self._requests.extend
        ids = write(req_index, list(blocks))
        super().append_block_ids(req_index, (ids,), overwrite)  # type: ignore[misc]

    def end_request(self, req_index: int) -> None:
        """Let another request have the row, which keeps what it has mapped."""
        self._requests.close(req_index)

    def compute_slot_mappings(self, *arguments: Any, **options: Any) -> Any:
        """The last call before the model runs: by its end everything is mapped."""
        slots = super().compute_slot_mappings(*arguments, **options)  # type: ignore[misc]
        self._memory.join()
        return slots


class TableV1(_Table):
    """Of runner V1, which moves requests to keep its batch dense."""

    def add_row(self, block_ids: list[int], row_idx: int) -> None:
        """Begin a request, whose blocks are all named."""
        ids = self._open(row_idx, list(block_ids))
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

    def compute_slot_mapping(self, *arguments: Any, **options: Any) -> None:
        """The last call before the model runs: by its end everything is mapped."""
        super().compute_slot_mapping(*arguments, **options)  # type: ignore[misc]
        self._memory.join()


def adopt_table(table: Any, mixin: type[_Table], memory: RowMemory) -> None:
    """Make a table that vLLM built write positions of rows from here on."""
    built = type(table)
    if not issubclass(built, mixin):
        table.__class__ = type(f"Row{built.__name__}", (mixin, built), {})
    table.use_rows(memory)
