# SPDX-License-Identifier: Apache-2.0
"""Host memory that is taken once and handed out in pieces.

Pinning some GiB takes the host a second, and the device waits meanwhile: no step should.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pyvattn.errors import OutOfMemory
from pyvattn.units import format_size

__all__ = ["HostPool", "Piece"]


@dataclass(frozen=True, order=True)
class _Run:
    """Cells ``[first, end)`` of a segment."""

    segment: int
    first: int
    end: int

    @property
    def count(self) -> int:
        return self.end - self.first


@dataclass(frozen=True)
class Piece:
    """Cells of a pool, whose bytes follow each other from run to run."""

    runs: tuple[_Run, ...]


class HostPool:
    """``cells`` of ``cell_bytes`` each, a power of two, of the host's memory; for one thread.

    A piece has one run of cells where that can be, else as few as there are: it is refused only
    where there are too few cells in all. ``pinned``: for copies by a GPU. Raises
    :class:`~pyvattn.errors.OutOfMemory` where the host has no such memory.
    """

    def __init__(self, cells: int, cell_bytes: int, *, pinned: bool) -> None:
        self._cell_bytes = cell_bytes
        # torch rounds pinned memory up to powers of two: these are some.
        counts = [1 << bit for bit in range(cells.bit_length()) if cells >> bit & 1][::-1]
        self._segments = [_host_bytes(n * cell_bytes, cells * cell_bytes, pinned) for n in counts]
        # In ascending order, none next to another.
        self._free = [_Run(index, 0, count) for index, count in enumerate(counts)]

    @property
    def free(self) -> int:
        """Cells that nobody has."""
        return sum(run.count for run in self._free)

    def take(self, size: int) -> Piece:
        """Return so many bytes; raises :class:`~pyvattn.errors.OutOfMemory`, with none taken."""
        wanted = -(-size // self._cell_bytes)
        if wanted > self.free:
            raise OutOfMemory(
                f"{format_size(size)} of host memory, and {format_size(self.free_bytes)} are free",
                requested=size,
            )
        taken: list[_Run] = []
        while wanted:
            taken.append(self._cut(wanted))
            wanted -= taken[-1].count
        return Piece(tuple(taken))

    def give(self, piece: Piece) -> None:
        """Take a piece back; copies to it and from it that are under way come first in a stream."""
        merged: list[_Run] = []
        for run in sorted([*self._free, *piece.runs]):
            last = merged[-1] if merged else None
            if last is not None and (last.segment, last.end) == (run.segment, run.first):
                merged[-1] = _Run(run.segment, last.first, run.end)
            else:
                merged.append(run)
        self._free = merged

    def views(self, piece: Piece, first: int, end: int) -> Iterator[Any]:
        """Yield the bytes ``[first, end)`` of a piece, as flat tensors one after the other."""
        begin = 0
        for run in piece.runs:
            size = run.count * self._cell_bytes
            low, high = max(first - begin, 0), min(end - begin, size)
            if low < high:
                base = run.first * self._cell_bytes
                yield self._segments[run.segment][base + low : base + high]
            begin += size

    @property
    def free_bytes(self) -> int:
        """Bytes of those cells."""
        return self.free * self._cell_bytes

    def close(self) -> None:
        """Give the memory back, with every piece."""
        self._segments, self._free = [], []

    def _cut(self, wanted: int) -> _Run:
        """Return a free run of so many cells, of the smallest that has them, or the longest."""
        enough = [run for run in self._free if run.count >= wanted]
        source = min(enough, key=lambda run: run.count) if enough else None
        if source is None:
            source = max(self._free, key=lambda run: run.count)
        index = self._free.index(source)
        taken = _Run(source.segment, source.first, min(source.end, source.first + wanted))
        rest = _Run(source.segment, taken.end, source.end)
        self._free[index : index + 1] = [rest] if rest.count else []
        return taken


def _host_bytes(size: int, whole: int, pinned: bool) -> Any:
    import torch

    try:
        return torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
    except RuntimeError as error:  # which torch raises for the host's memory
        kind = "pinned host memory" if pinned else "host memory"
        raise OutOfMemory(
            f"there is no {kind} for swap_memory, {format_size(whole)} for each worker: lower "
            "pyvattn's option swap_memory",
            requested=whole,
        ) from error
