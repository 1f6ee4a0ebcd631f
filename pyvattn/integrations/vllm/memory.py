# SPDX-License-Identifier: Apache-2.0
"""The KV memory of one of vLLM's workers: its blocks are ours, mapped in rows."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pyvattn import _native
from pyvattn.budget import Budget
from pyvattn.errors import DriverError, SpecError, UnsupportedError
from pyvattn.integrations.vllm.layout import Paging
from pyvattn.integrations.vllm.waits import Waits
from pyvattn.rows import BlockPool, PoolStats, RowMap
from pyvattn.spec import CacheSpec

__all__ = ["NULL_BLOCK", "RowMemory", "Sizes"]

_log = logging.getLogger("vllm.pyvattn")

# vLLM's block 0 belongs to no request: padding and dummy runs read it. So row 0, which has
# it everywhere, is no request's either.
NULL_BLOCK = 0


@dataclass(frozen=True)
class Sizes:
    """What vLLM asks for: ``layers`` of ``heads`` heads of ``head_size`` elements of ``dtype``.

    ``dtype`` is a name that :class:`pyvattn.CacheSpec` knows; rows hold ``max_blocks`` blocks.
    ``reads_by_table``: kernels find a request's blocks by vLLM's table, wherever they lie in a row.
    """

    layers: int
    heads: int
    head_size: int
    dtype: str
    block_size: int
    blocks: int
    rows: int
    max_blocks: int
    reads_by_table: bool = True


class RowMemory:
    """Blocks under vLLM's ids, and rows for requests.

    :meth:`open`, :meth:`extend` and :meth:`close` are staged; after :meth:`join` they hold. With
    ``background`` a thread of the core's maps what is staged from that moment on.
    """

    # As the pool chooses.
    _slab_blocks: int | None = None

    def __init__(
        self, sizes: Sizes, paging: Paging, driver: _native.Driver, *, background: bool
    ) -> None:
        self.sizes = sizes
        self.positions = sizes.max_blocks
        self.block_size = sizes.block_size
        self.reads_by_table = sizes.reads_by_table
        spec = _spec(sizes, sizes.rows + self._rows_of_blocks(), self.positions)
        arenas = sizes.layers // paging.layers_per_arena
        self.pool = BlockPool.on_driver(
            spec,
            driver,
            layout="token",
            memory=self._budget(sizes.blocks * arenas * paging.page_size),
            layers_per_arena=paging.layers_per_arena,
            slab_blocks=self._slab_blocks,
        )
        self._blocks = self.pool.allocate(self._blocks_at_first())
        self.rows = RowMap(self.pool)
        self._background = background
        # Since the last join() that succeeded.
        self._is_staged = False
        self.waits = Waits()
        self.retries = 0
        self._guard_tokens = 0
        # Null blocks behind the last of a row.
        self._guards: dict[int, int] = {}
        self._open_null_row()
        self._touch_blocks()
        self._rows_of_none = len(self.rows.open_rows())
        self.reset_stats()

    def open(self, blocks: list[int], computed: int | None = None) -> int:
        """Stage a row for these blocks of vLLM's: one that has them already, where there is.

        The blocks of the first ``computed`` tokens hold KV that is needed, by default all of
        them. Nothing depends on it here, where each block of vLLM's is always the same of ours.
        """
        guard = self._guard_behind(len(blocks))
        row = self.rows.open(self._named(blocks) + guard)
        self._note_guard(row, len(guard))
        self.requests += 1
        self._staged(len(blocks))
        return row

    def extend(self, row: int, blocks: list[int]) -> None:
        """Stage more blocks at the end of a row."""
        if before := self._guards.pop(row, 0):
            self.rows.trim(row, tail=before)
        guard = self._guard_behind(len(self.rows.blocks(row)) + len(blocks)) if before else []
        self.rows.extend(row, self._named(blocks) + guard)
        self._note_guard(row, len(guard))
        self._staged(len(blocks))

    def close(self, row: int) -> None:
        """End a row, whose mappings stay until the kernels launched so far have passed."""
        self._guards.pop(row, None)
        self.rows.close(row)

    def join(self) -> None:
        """Return once every open row has its blocks; raises a ``DriverError`` that says why not."""
        if not self._is_staged:
            return
        with self.waits.timed():
            self._join_rows()
            self._is_staged = False

    @contextmanager
    def guarded(self, tokens: int) -> Iterator[None]:
        """Map the null block for so many tokens behind each row that is opened meanwhile.

        For kernels that read there, and requests without blocks of their own there. Taking such
        a guard away for a request's next block waits for the kernels that may read it.
        """
        self._guard_tokens = tokens
        try:
            yield
        finally:
            self._guard_tokens = 0

    def arena(self, index: int) -> Any:
        """Return the bytes of an arena as one flat torch tensor of uint8."""
        return self.rows.arena(index).view(-1)

    def stats(self) -> dict[str, int | float]:
        """Count what was mapped, and what it took: seconds in all, and those that steps waited.

        Of those in all, ``driver_seconds`` passed in driver calls, and ``fence_seconds`` until
        kernels were done with what was to be unmapped. Of those that steps waited,
        ``exposed_seconds`` passed while the device had nothing else to do.
        """
        pool, start = self.pool.stats(), self._at_start
        return {
            "requests": self.requests,
            "blocks_placed": self.blocks_placed,
            "map_calls": pool.map_calls - start.map_calls,
            "unmap_calls": pool.unmap_calls - start.unmap_calls,
            "driver_failures": pool.driver_failures,
            "retries": self.retries,
            "map_seconds": pool.flush_seconds - start.flush_seconds,
            "driver_seconds": _driver_seconds(pool) - _driver_seconds(start),
            "fence_seconds": pool.fence_seconds - start.fence_seconds,
            **self.waits.stats(),
            "open_rows": len(self.rows.open_rows()) - self._rows_of_none,
        }

    def reset_stats(self) -> None:
        """Count from here on."""
        self._at_start = self.pool.stats()
        self.requests = self.blocks_placed = 0
        self.waits.reset()

    def close_all(self) -> None:
        """Give the memory back; tensors keep their addresses, with nothing behind them."""
        self.pool.close()

    def _named(self, blocks: list[int]) -> list[int]:
        return [self._blocks[block] for block in blocks]

    def _guard_behind(self, length: int) -> list[int]:
        wanted = -(-self._guard_tokens // self.sizes.block_size)
        return [self._blocks[NULL_BLOCK]] * min(wanted, self.positions - length)

    def _note_guard(self, row: int, positions: int) -> None:
        if positions:
            self._guards[row] = positions

    def _staged(self, blocks: int) -> None:
        self.blocks_placed += blocks
        if not blocks:
            return
        self._is_staged = True
        if self._background:
            self.rows.flush_async()

    def _join_rows(self) -> None:
        try:
            self.rows.join()
        except DriverError as error:
            # Nothing has changed, and what was staged still is.
            _log.warning("mapping is tried once more: %s", error)
            self.retries += 1
            self.rows.join()

    def _budget(self, memory: int) -> int | Budget:
        """Return what the blocks are taken from, that many bytes in all."""
        return memory

    def _blocks_at_first(self) -> int:
        return self.sizes.blocks

    def _rows_of_blocks(self) -> int:
        """Return how many rows more than vLLM asks for are needed."""
        return 0

    def _touch_blocks(self) -> None:
        """Map each block once: drivers zero fresh memory then, which no step should wait for."""
        for first in range(0, len(self._blocks), self.positions):
            row = self.rows.open(self._blocks[first : first + self.positions])
            self.rows.flush()
            self.rows.close(row)
            self.rows.flush()
            self.rows.reclaim(len(self._blocks))

    def _open_null_row(self) -> None:
        null = self._blocks[NULL_BLOCK]
        row = self.rows.open([null])
        if row != 0:
            raise UnsupportedError(f"the row of vLLM's null block is {row}, not 0")
        # Drivers zero fresh memory at every place where its first batch maps it: one first.
        self.rows.flush()
        self.rows.extend(row, [null] * (self.positions - 1))
        self.rows.flush()


def _driver_seconds(pool: PoolStats) -> float:
    return pool.map_seconds + pool.unmap_seconds


def _spec(sizes: Sizes, rows: int, positions: int) -> CacheSpec:
    try:
        return CacheSpec(
            layers=sizes.layers,
            kv_heads=sizes.heads,
            head_dim=sizes.head_size,
            dtype=sizes.dtype,
            max_slots=rows,
            max_tokens=positions * sizes.block_size,
            guard_tokens=0,
        )
    except SpecError as error:
        raise SpecError(
            f"{rows} rows of {positions * sizes.block_size} tokens: {error}. Lower "
            "--max-num-seqs, --max-model-len or pyvattn's option rows"
        ) from error
