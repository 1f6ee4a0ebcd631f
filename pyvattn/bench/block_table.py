# SPDX-License-Identifier: Apache-2.0
"""The baseline of ``bench core``: a block-table manager in plain Python, a dict of lists."""

from __future__ import annotations

from collections.abc import Mapping

from pyvattn.errors import LengthError, OutOfMemory, SlotError


class BlockTable:
    """Blocks of ``block_tokens`` tokens, one list of block numbers for each request.

    ``step`` keeps the promises of :meth:`pyvattn.KVCache.step`: every request
    named is live, every length fits, a step that lacks blocks changes nothing, and
    the tokens in use are counted.
    """

    def __init__(self, blocks: int, max_tokens: int, block_tokens: int = 16) -> None:
        self.block_tokens = block_tokens
        self.max_tokens = max_tokens
        self.free = list(range(blocks))
        self.tables: dict[int, list[int]] = {}
        self.lengths: dict[int, int] = {}
        self.tokens_used = 0

    def acquire(self, request: int) -> None:
        """Begin a request."""
        self.tables[request] = []
        self.lengths[request] = 0

    def release(self, request: int) -> None:
        """End a request and take its blocks back."""
        self.free.extend(self.tables.pop(request))
        self.tokens_used -= self.lengths.pop(request)

    def step(self, lengths: Mapping[int, int]) -> None:
        """Back ``lengths[request]`` tokens of every request, or raise with nothing changed."""
        size = self.block_tokens
        growing = []
        missing = 0
        used = self.tokens_used
        for request, length in lengths.items():
            table = self.tables.get(request)
            if table is None:
                raise SlotError(f"request {request} is not live")
            if not 0 <= length <= self.max_tokens:
                raise LengthError(f"length {length} is outside 0..{self.max_tokens}")
            used += length - self.lengths[request]
            more = (length + size - 1) // size - len(table)
            if more > 0:
                growing.append((table, more))
                missing += more
        if missing > len(self.free):
            raise OutOfMemory(f"{missing} blocks are needed and {len(self.free)} are free")
        for table, more in growing:
            table.extend(self.free[-more:])
            del self.free[-more:]
        self.lengths.update(lengths)
        self.tokens_used = used
