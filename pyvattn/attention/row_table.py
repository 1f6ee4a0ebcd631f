# SPDX-License-Identifier: Apache-2.0
"""A cache's rows as the blocks of a paged kernel: block ``i`` of a slot follows block ``i - 1``.

Nothing is copied: the blocks are a view of the rows, and the table says where they lie anyway.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import gcd

import torch
from torch import Tensor

# The largest was the fastest in measurements; all divide what rows usually have.
_BLOCKS = (256, 128, 64, 32, 16, 8, 4, 2, 1)


@dataclass(frozen=True)
class RowTable:
    """How rows are cut: ``tokens`` of a block, ``stride`` in elements from one entry to the next.

    Block ``i`` of slot ``s`` is entry ``s * row_step + i * block_step``, of ``per_row`` blocks.
    Rows that are no whole number of tokens apart have more entries than blocks, which overlap.
    """

    tokens: int
    stride: int
    slots: int
    per_row: int
    row_step: int
    block_step: int

    @classmethod
    def of(cls, rows: Tensor, whole_tokens: int | None) -> RowTable:
        """Cut ``rows``, ``[slots, tokens, heads, dim]``, into the largest blocks that they allow.

        ``whole_tokens``: what blocks divide, such as the tokens of a physical page; ``None`` for
        blocks of any size.
        """
        slots, tokens, heads, dim = rows.shape
        # Of one slot torch may say any stride.
        row, token = (rows.stride(0) if slots > 1 else 0), rows.stride(1)
        elements = rows.untyped_storage().nbytes() // rows.itemsize - rows.storage_offset()
        # What lies behind the last slot's first token, which is where its last block must end.
        behind = elements - (slots - 1) * row - (heads - 1) * rows.stride(2) - dim
        return _cut(slots, tokens, row, token, behind // token + 1, whole_tokens)

    def view(self, rows: Tensor) -> Tensor:
        """Return K or V as ``[entries, block, heads, dim]``, in the memory of ``rows``."""
        entries = (self.slots - 1) * self.row_step + (self.per_row - 1) * self.block_step + 1
        shape = (entries, self.tokens, *rows.shape[2:])
        return rows.as_strided(shape, (self.stride, *rows.stride()[1:]))

    def table(self, device: torch.device) -> Tensor:
        """Return the entry of each block, int32 ``[slots, per_row]``; made once for each device."""
        made = _made.get((self, device))
        if made is None:
            made = self._entries(device)
            # What a CUDA graph fills when it is replayed is of no use to anybody else.
            if not _is_capturing(device):
                if device.type == "cuda":  # other streams may read it from now on
                    torch.cuda.current_stream(device).synchronize()
                _made[self, device] = made
        return made

    def _entries(self, device: torch.device) -> Tensor:
        with torch.inference_mode(False):
            slot = torch.arange(self.slots, dtype=torch.int32, device=device) * self.row_step
            block = torch.arange(self.per_row, dtype=torch.int32, device=device) * self.block_step
            return slot[:, None] + block


# Kept for good: CUDA graphs read tables where they lie. There are as many as kinds of caches.
_made: dict[tuple[RowTable, torch.device], Tensor] = {}


def _is_capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def block_tokens(row_tokens: int, whole_tokens: int | None) -> int:
    """Return the largest block that divides the tokens from row to row and ``whole_tokens``."""
    return next(
        block
        for block in _BLOCKS
        if row_tokens % block == 0 and (whole_tokens is None or whole_tokens % block == 0)
    )


@lru_cache(maxsize=256)
def _cut(
    slots: int, tokens: int, row: int, token: int, most: int, whole_tokens: int | None
) -> RowTable:
    for block in _BLOCKS:
        per_row = max(-(-tokens // block), 1)
        fits = row % (block * token) == 0 and per_row * block <= most
        if block == 1 or (fits and (whole_tokens is None or whole_tokens % block == 0)):
            break
    step = block * token
    stride = gcd(row, step)
    return RowTable(block, stride, slots, per_row, row // stride, step // stride)
