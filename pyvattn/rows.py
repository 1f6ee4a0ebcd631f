# SPDX-License-Identifier: Apache-2.0
"""Blocks and rows, for engines that have a block manager of their own.

:class:`BlockPool` is memory by the block, :class:`RowMap` says which block lies at which
position of which row: the page table as a mechanism, without requests or policy. Those who
have no block manager want :class:`pyvattn.KVCache`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any

from pyvattn import _native
from pyvattn.arguments import check_type, check_whole
from pyvattn.budget import Budget, budget_of
from pyvattn.errors import ConfigError, SpecError
from pyvattn.geometry import Geometry
from pyvattn.layers import LayerTensors
from pyvattn.nvtx import ranged, ranged_driver
from pyvattn.opened import Opened
from pyvattn.resolve import open_driver
from pyvattn.shared import SharedMemory
from pyvattn.spec import CacheSpec
from pyvattn.text import shown

__all__ = ["BlockPool", "PoolStats", "RowMap"]


@dataclass(frozen=True)
class PoolStats:
    """A block pool at one moment. Sizes are in bytes.

    ``blocks_allocated`` of ``block_bytes`` each, all arenas counted, lie in ``slabs`` allocations
    of the driver; ``blocks_free`` of them have no holder. ``blocks_available`` are free or can
    still be allocated under ``memory_limit``. ``map_calls`` and ``unmap_calls`` are one for each
    run of blocks and arena, ``map_batches`` one for each time that the driver was asked to map;
    ``driver_failures`` are calls that failed and changed nothing. ``map_seconds`` and
    ``unmap_seconds`` passed in the driver, ``fence_seconds`` until kernels were done with what was
    to be unmapped, and ``flush_seconds`` in :meth:`RowMap.flush`, which has the others in it, in
    whatever thread. ``bookkeeping_bytes`` is host memory of the tables.
    """

    blocks_allocated: int
    blocks_free: int
    blocks_available: int
    block_bytes: int
    slabs: int
    memory_limit: int
    map_calls: int
    map_batches: int
    unmap_calls: int
    driver_failures: int
    map_seconds: float
    unmap_seconds: float
    flush_seconds: float
    fence_seconds: float
    bookkeeping_bytes: int


class BlockPool(Opened):
    """Physical memory by the block: one page in every arena, under one id.

    The arguments are those of :class:`pyvattn.KVCache`. Ids are whole numbers from 0;
    blocks whose ids follow each other are neighbours in memory, and a run of them is
    mapped by one call for each arena. Any thread may call.

    Close the pool, or use it as a context manager: that ends its row maps too. Raises
    what :class:`pyvattn.KVCache` raises.
    """

    def __init__(
        self,
        spec: CacheSpec,
        *,
        device: str = "cuda",
        driver: str = "auto",
        page_size: int | str = "auto",
        layout: str = "auto",
        memory: int | str | Budget,
        layers_per_arena: int | None = None,
        peer_access: bool = False,
    ) -> None:
        check_type("spec", spec, CacheSpec)
        if len(spec.groups) > 1:
            raise SpecError(
                f"the spec has {len(spec.groups)} groups of layers, and a pool holds blocks of "
                "layers that are alike: open one for each of its parts"
            )
        opened = open_driver(
            spec,
            device=device,
            driver=driver,
            page_size=page_size,
            layout=layout,
            layers_per_arena=layers_per_arena,
            peer_access=peer_access,
        )
        self._open(spec, opened.geometries[0], opened.driver, budget_of(memory))

    @classmethod
    def on_driver(
        cls,
        spec: CacheSpec,
        driver: _native.Driver,
        *,
        layout: str,
        memory: int | str | Budget,
        layers_per_arena: int | None = None,
        slab_blocks: int | None = None,
    ) -> BlockPool:
        """Open a pool on a driver that was made before, such as one wrapped in adaptors.

        ``slab_blocks``: how many blocks go back to the driver together; a power of two is best.
        Raises :class:`~pyvattn.errors.ConfigError` for what is no such number.
        """
        pool = cls.__new__(cls)
        check_type("spec", spec, CacheSpec)
        check_type("driver", driver, _native.Driver)
        geometry = spec.geometry(layout, driver.page_size, layers_per_arena)
        blocks = 0 if slab_blocks is None else check_whole("slab_blocks", slab_blocks)
        slab_bytes = blocks * geometry.arenas * geometry.page_size
        if slab_bytes > _native.MAX_VIRTUAL_BYTES:
            raise ConfigError(f"slab_blocks={shown(slab_blocks)}: no device has so much memory")
        pool._open(spec, geometry, driver, budget_of(memory), slab_bytes)
        return pool

    def _open(
        self,
        spec: CacheSpec,
        geometry: Geometry,
        driver: _native.Driver,
        budget: Budget,
        slab_bytes: int = 0,
    ) -> None:
        # A slab is what goes back when neighbours ask.
        if not slab_bytes and isinstance(budget, SharedMemory):
            slab_bytes = budget.chunk_bytes
        driver = ranged_driver(driver)
        self._native = _native.BlockPool(
            driver=driver, arenas=geometry.arenas, budget=budget, slab_bytes=slab_bytes
        )
        self._own(spec, (geometry,), driver, self._native)

    def blocks_for(self, tokens: int) -> int:
        """Return how many blocks the first ``tokens`` tokens of a row take.

        Kernels may read up to ``spec.guard_tokens`` tokens further. Where the driver is
        not zero-backed (``cumem``, ``stock-uvm``), ask for so many more.
        """
        return self.geometry.pages(check_whole("tokens", tokens))

    def allocate(self, count: int, after: int | None = None) -> list[int]:
        """Return ``count`` blocks that the caller holds, in runs as long as can be.

        The first lies right behind block ``after``, where that is free. Raises
        :class:`~pyvattn.errors.OutOfMemory` with nothing taken.
        """
        return self._native.allocate(count, after)

    def retain(self, blocks: Iterable[int]) -> None:
        """Hold each block once more. Raises :class:`~pyvattn.errors.BlockError`."""
        self._native.retain(blocks)

    def release(self, blocks: Iterable[int]) -> None:
        """Hold each block once less. It is free when no row maps it either.

        Raises :class:`~pyvattn.errors.BlockError`, with nothing changed, for one that the
        caller does not hold.
        """
        self._native.release(blocks)

    def dirty(self, blocks: Iterable[int]) -> list[bool]:
        """Return whether each block may hold what somebody wrote.

        A block that was never mapped reads as zeros; others are as they were left, which
        may be NaN: see :meth:`RowMap.zero`.
        """
        return self._native.dirty(blocks)

    def stats(self) -> PoolStats:
        """Count blocks, bytes and driver calls."""
        counted = self._native.stats()
        return PoolStats(
            **{field.name: getattr(counted, field.name) for field in fields(PoolStats)}
        )

    def _bytes_allocated(self) -> int:
        stats = self.stats()
        return stats.blocks_allocated * stats.block_bytes


class RowMap:
    """Which block is mapped at each position of each row.

    The pool's ``spec.max_slots`` rows, of ``positions`` positions each. Position ``p`` of a
    row holds the tokens whose bytes lie in page ``p`` of it. :meth:`open`,
    :meth:`extend`, :meth:`trim` and :meth:`close` are staged; :meth:`flush` carries them
    out, as one batch, whole or not at all, and :meth:`flush_async` does so in a thread of the
    map's own, which :meth:`join` waits for. A block may lie in many rows and positions; rows
    hold the blocks that they map. A closed row keeps its mappings until it is used again:
    :meth:`open` prefers the row that begins with the most of the blocks already, and one that no
    kernel reads any more to one whose fence has yet to pass.

    Any thread may call. While the driver works, without the GIL, other rows can be staged.
    """

    def __init__(self, pool: BlockPool) -> None:
        check_type("pool", pool, BlockPool)
        geometry = pool.geometry
        self._pool = pool
        self._native = _native.RowMap(
            pool=pool._native,
            rows=geometry.slots,
            max_tokens=geometry.max_tokens,
            guard_tokens=geometry.guard_tokens,
            token_bytes=geometry.token_bytes,
            ring_tokens=geometry.ring_tokens,
        )
        self._tensors = LayerTensors(self._native, pool.spec, [geometry])

    @property
    def pool(self) -> BlockPool:
        """Where the blocks come from."""
        return self._pool

    @property
    def spec(self) -> CacheSpec:
        """What the pool was opened for."""
        return self._pool.spec

    @property
    def chunk_tokens(self) -> int | None:
        """The most new tokens of a row to append at once: see :attr:`KVCache.chunk_tokens`."""
        return self._pool.chunk_tokens

    @property
    def positions(self) -> int:
        """Positions of a row, those of the tail guard included; of a ring once, not twice."""
        return self._native.positions

    def open(self, blocks: Iterable[int] = ()) -> int:
        """Return a row for these blocks, at positions 0, 1, …

        Raises :class:`~pyvattn.errors.OutOfSlots` where every row is open,
        :class:`~pyvattn.errors.BlockError` for a block that the caller does not hold and
        :class:`~pyvattn.errors.LengthError` for more than ``positions``.
        """
        return self._native.open(blocks)

    def extend(self, row: int, blocks: Iterable[int]) -> None:
        """Put blocks behind the last of an open row.

        Raises :class:`~pyvattn.errors.RowError` where it is not open, and what
        :meth:`open` raises.
        """
        self._native.extend(row, blocks)

    def trim(self, row: int, *, front: int = 0, tail: int = 0, after: object = None) -> None:
        """Take ``front`` more blocks from the front of a row, and ``tail`` from its end.

        The others stay where they are. Nothing is unmapped before ``after`` has passed: a
        stream or a recorded event on which kernels still read there, as
        :meth:`pyvattn.KVCache.release` takes it.
        """
        self._native.trim(row, front, tail, self._pool._fence(after))

    def close(self, row: int, after: object = None) -> None:
        """End a row. Its mappings are not touched before ``after`` has passed."""
        self._native.close(row, self._pool._fence(after))

    @ranged("pyvattn.flush")
    def flush(self) -> None:
        """Carry out what is staged. Every open row then maps its blocks in order.

        Where it fails nothing has changed, and what was staged still is: flush again, or
        :meth:`discard` it. Raises :class:`~pyvattn.errors.DriverError`,
        :class:`~pyvattn.errors.OutOfMemory` where the device has no memory left for page
        tables, and :class:`~pyvattn.errors.BlockError` for a block that was released before
        it was mapped.
        """
        self._native.flush()

    def flush_async(self) -> None:
        """Have what is staged carried out in the background, and return at once.

        The map has a thread for it, which never takes the GIL: it maps while Python is busy. Call
        it again for what is staged later, also while the thread is at work. :meth:`join` before
        kernels use the rows.
        """
        self._native.flush_async()

    @ranged("pyvattn.join")
    def join(self) -> None:
        """Return once everything staged is carried out, by :meth:`flush_async` or here.

        Raises what :meth:`flush` raises, where the last attempt in the background has failed too.
        Then nothing has changed, and what was staged still is: join again, or :meth:`discard` it.
        """
        self._native.join()

    def discard(self) -> None:
        """Forget what is staged: every row is as the last :meth:`flush` left it."""
        self._native.discard()

    def reclaim(self, blocks: int) -> int:
        """Take mappings that no open row needs until so many blocks are free.

        The longest closed rows give first. Returns how many blocks came free: fewer where
        the caller holds the others, or none are left.
        """
        return self._native.reclaim(min(check_whole("blocks", blocks), 2**63))

    def zero(self, row: int, *, first: int = 0, count: int = 1, after: object = None) -> None:
        """Write zeros over ``count`` positions of an open row, and wait for them.

        For blocks that are :meth:`~BlockPool.dirty`: kernels read whole tiles, and 0 x NaN
        is NaN. Raises :class:`~pyvattn.errors.RowError` for what is not flushed yet.
        """
        self._native.zero(row, first, count, self._pool._fence(after))

    def blocks(self, row: int) -> list[int | None]:
        """Return the blocks of an open row as staged, ``None`` where its front was trimmed."""
        return self._native.blocks(row)

    def open_rows(self) -> list[int]:
        """Return the rows that are open, as staged."""
        return self._native.open_rows()

    def layer(self, index: int, from_dlpack: Callable[[Any], Any] | None = None) -> tuple[Any, Any]:
        """Return the K and V of one layer, each ``[max_slots, max_tokens, kv_heads, head_dim]``.

        As :meth:`pyvattn.KVCache.layer`: they share the memory, with no copy.
        """
        if from_dlpack is None:
            return self._tensors.of_torch(index)
        return self._tensors.made_by(index, from_dlpack)

    def arena(self, index: int, from_dlpack: Callable[[Any], Any] | None = None) -> Any:
        """Return every byte of one arena, ``[max_slots, row_bytes]`` of uint8, with no copy.

        For engines that lay tokens out in a way of their own inside a block. Position ``p``
        of a row begins at byte ``p * pool.geometry.page_size`` of it.
        """
        return self._tensors.arena(index, from_dlpack)
