# SPDX-License-Identifier: Apache-2.0
"""An engine on a row map, with books of what must lie at every position of every row."""

from __future__ import annotations

import contextlib
import ctypes
import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pyvattn import BlockPool, CacheSpec, RowMap, _native

ROWS, POSITIONS, BLOCKS = 5, 6, 18
CONTENT = struct.Struct("=QII")

Rows = dict[int, "list[int | None]"]


@dataclass(frozen=True)
class HeldWork:
    """Work of the device that goes on until the test lets it go."""

    fence: _native.Fence
    is_awaited: Callable[[], bool]


class Memory:
    """Memory that the CPU reaches, and the streams of the emulated device."""

    def write(self, address: int, data: bytes) -> None:
        ctypes.memmove(address, data, len(data))

    def read(self, address: int, size: int) -> bytes:
        return ctypes.string_at(address, size)

    @contextlib.contextmanager
    def held_work(self, driver: str) -> Iterator[HeldWork]:
        cuda = _native.emulated_cuda
        stream = cuda.make_stream(0)
        kernel = cuda.launch_kernel(0, stream)
        # The host has no streams, and takes a fence of any device.
        device = driver if _native.has_streams(driver) else "cumem-emulated"
        fence = _native.stream_fence(device, 0, stream)
        before = cuda.calls("cuEventSynchronize")
        try:
            yield HeldWork(fence, lambda: cuda.calls("cuEventSynchronize") > before)
        finally:
            cuda.release_kernel(kernel)


class Engine:
    """Drives a pool and a row map, and keeps books of what must lie at every position."""

    def __init__(self, name: str, memory: Memory, seed: int = 0) -> None:
        self.name, self.memory, self.random = name, memory, random.Random(seed)
        capabilities = _native.driver_capabilities(name, 0)
        self.page = capabilities.page_sizes[0]
        self.reads_zeros_unmapped = capabilities.zero_backed
        self.faults = _native.FaultAdaptor(_native.make_driver(name, self.page, 0))
        self.checked = _native.CheckedAdaptor(self.faults)
        spec = CacheSpec(
            layers=1,
            kv_heads=8,
            head_dim=128,
            dtype="float32",
            max_slots=ROWS,
            max_tokens=POSITIONS * self.page // 4096,
            guard_tokens=0,
        )
        self.pool = BlockPool.on_driver(
            spec, self.checked, layout="layer", memory=BLOCKS * 2 * self.page
        )
        self.map = RowMap(self.pool)
        arenas = range(self.pool.geometry.arenas)
        self.bases = [self.map.arena(index, lambda view: view.address) for index in arenas]
        self.held: list[int] = []
        self.rows: Rows = {}
        self.flushed: Rows = {}
        self.contents: dict[int, int] = {}
        self.contents_made = 0

    def address(self, arena: int, row: int, position: int) -> int:
        return self.bases[arena] + (row * POSITIONS + position) * self.page

    # --- what an engine does ---

    def allocate(self, count: int) -> list[int]:
        blocks = self.pool.allocate(count)
        for block in blocks:
            self.contents.pop(block, None)
        self.held += blocks
        return blocks

    def open(self, blocks: list[int]) -> int:
        row = self.map.open(blocks)
        assert row not in self.rows
        self.rows[row] = list(blocks)
        return row

    def extend(self, row: int, blocks: list[int]) -> None:
        self.map.extend(row, blocks)
        self.rows[row] = self.rows[row] + blocks

    def trim(self, row: int, front: int, tail: int, after: object = None) -> None:
        self.map.trim(row, front=front, tail=tail, after=after)
        holes, blocks = self.holes(row), self.rows[row]
        kept = [None] * (holes + front) + blocks[holes + front :]
        self.rows[row] = kept[: len(kept) - tail]

    def holes(self, row: int) -> int:
        return sum(block is None for block in self.rows[row])

    def close(self, row: int) -> None:
        self.map.close(row)
        del self.rows[row]

    def flush(self) -> None:
        self.map.flush()
        self.follow_flush()

    def follow_flush(self) -> None:
        self.flushed = {row: list(blocks) for row, blocks in self.rows.items()}
        for row, position, block in self.positions():
            if block is not None and block not in self.contents:
                self.contents_made += 1
                self.contents[block] = self.contents_made
                for arena in range(len(self.bases)):
                    self.memory.write(self.address(arena, row, position), self.found(block, arena))

    def zero(self, row: int, position: int) -> None:
        self.map.zero(row, first=position)
        block = self.flushed[row][position]
        assert block is not None
        self.contents[block] = 0

    # --- what must hold ---

    def positions(self) -> Iterator[tuple[int, int, int | None]]:
        """Every position of every row, as the last flush left it."""
        for row, blocks in self.flushed.items():
            for position, block in enumerate(blocks):
                yield row, position, block

    def found(self, block: int, arena: int) -> bytes:
        """What the first bytes of a block are in one arena."""
        content = self.contents[block]
        return CONTENT.pack(content, block if content else 0, arena if content else 0)

    def check(self) -> None:
        """The map says what is staged, and memory is as the last flush left it."""
        assert set(self.map.open_rows()) == set(self.rows)
        for row, blocks in self.rows.items():
            assert self.map.blocks(row) == blocks
        self.check_memory()

    def check_memory(self) -> None:
        for row, position, block in self.positions():
            for arena in range(len(self.bases)):
                if block is None and not self.reads_zeros_unmapped:
                    continue
                wanted = bytes(CONTENT.size) if block is None else self.found(block, arena)
                lies = self.memory.read(self.address(arena, row, position), CONTENT.size)
                assert lies == wanted, f"row {row}, position {position}, arena {arena}"

    # --- the end ---

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.faults.disarm()
        self.pool.close()
        assert self.checked.mapped_bytes == 0
        assert self.checked.live_slabs == 0
