# SPDX-License-Identifier: Apache-2.0
"""Which row each request of one of vLLM's block tables has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from pyvattn.errors import RowError
from pyvattn.integrations.vllm.memory import NULL_BLOCK

__all__ = ["RequestRows", "RowBooks"]


class RowBooks(Protocol):
    """What is needed of :class:`~pyvattn.integrations.vllm.memory.RowMemory`."""

    positions: int
    block_size: int
    # Whether kernels find blocks by the ids of vLLM's table alone.
    reads_by_table: bool

    def open(self, blocks: list[int], computed: int | None = None) -> int:
        """Stage a row for vLLM's blocks, the first of which hold so many tokens."""

    def extend(self, row: int, blocks: list[int]) -> None:
        """Stage more blocks at its end."""

    def close(self, row: int) -> None:
        """Stage its end, behind the kernels that were launched so far."""


@dataclass
class _Request:
    row: int
    length: int = 0


class RequestRows:
    """Turns what vLLM says of a request's blocks into positions of its row.

    A *place* is the request's index in vLLM's table. What comes back are virtual block ids,
    ``row * positions + i``: the ids that kernels read.

    In front of a window, where nothing is kept of a prompt that is in the prefix cache, vLLM names
    its null block, which kernels may touch and then mask. There they read row 0, which has it
    everywhere, and the request's row begins with the first block that it holds: so nothing is
    mapped in front of a window, and a closed row is found again by what it holds. Kernels without
    a table find a token by its place in the row: for them null blocks are mapped like others.
    """

    def __init__(self, memory: RowBooks) -> None:
        self._memory = memory
        self._at: dict[int, _Request] = {}

    def open(self, place: int, blocks: list[int], computed: int | None = None) -> list[int]:
        """Begin a request; one that was at the place before has ended.

        ``computed``: how many tokens its blocks hold already; by default all may.
        """
        self.close(place)
        skipped = _null_blocks_in_front(blocks) if self._memory.reads_by_table else 0
        if computed is not None:
            computed = max(0, computed - skipped * self._memory.block_size)
        request = self._at[place] = _Request(self._memory.open(blocks[skipped:], computed))
        return [NULL_BLOCK] * skipped + self._ids(request, len(blocks) - skipped)

    def extend(self, place: int, blocks: list[int]) -> list[int]:
        """Add blocks to a request."""
        request = self._at.get(place)
        if request is None:
            raise RowError(f"no request at place {place} of vLLM's block table: open it first")
        self._memory.extend(request.row, blocks)
        return self._ids(request, len(blocks))

    def close(self, place: int) -> None:
        """End the request at a place, if there is one."""
        request = self._at.pop(place, None)
        if request is not None:
            self._memory.close(request.row)

    def row(self, place: int) -> int | None:
        """Return the row of the request at a place, if there is one."""
        request = self._at.get(place)
        return None if request is None else request.row

    def move(self, source: int, target: int) -> None:
        """The request at ``source`` is at ``target`` from here on."""
        if source == target:
            return
        self.close(target)
        request = self._at.pop(source, None)
        if request is not None:
            self._at[target] = request

    def swap(self, a: int, b: int) -> None:
        """Two places change their requests."""
        first, second = self._at.pop(a, None), self._at.pop(b, None)
        if second is not None:
            self._at[a] = second
        if first is not None:
            self._at[b] = first

    def _ids(self, request: _Request, count: int) -> list[int]:
        first = request.row * self._memory.positions + request.length
        request.length += count
        return list(range(first, first + count))


def _null_blocks_in_front(blocks: list[int]) -> int:
    return next((i for i, block in enumerate(blocks) if block != NULL_BLOCK), len(blocks))
