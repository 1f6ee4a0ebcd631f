# SPDX-License-Identifier: Apache-2.0
"""FlashAttention-3 with a page table, over rows that are contiguous: it needs no tail guard.

Told where blocks lie, the kernel copies token by token and nothing past a row's length, except
where blocks are whole tiles and there are many queries: then it reads with TMA, to the end of a
tile. Blocks of that kind are used only where a physical page is a whole number of them, so that
all of it is the row's. What a page holds past the length must be finite then, as it does in a
cache, which zeroes a page before another request gets it.

Source: hopper/paged_kv.h, get_pagedkv_tma() of hopper/flash_api.cpp and hopper/tile_size.h.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pyvattn.attention.flash_attn3 import FlashAttention3Kernel
from pyvattn.attention.flash_attn3_build import why_not_paged
from pyvattn.attention.problem import Problem
from pyvattn.attention.row_table import RowTable
from pyvattn.kernels import kernel_named

# No tile of any head dim is smaller, nor are those of queries.
_SMALLEST_TILE = 64


class FlashAttention3PagedKernel(FlashAttention3Kernel):
    """FlashAttention-3 over a table of the rows: slower than without, but no memory for a guard."""

    known = kernel_named("flash-attn-3-paged")
    plans = False

    def unavailable(self) -> str | None:
        """Ask the build for page tables as well."""
        return super().unavailable() or why_not_paged()

    def rows(self, problem: Problem) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Return K and V as blocks, and the table: ``cache_batch_idx`` names a row of it."""
        cut = RowTable.of(problem.k, whole_tokens_of(problem))
        table = cut.table(problem.k.device)
        return cut.view(problem.k), cut.view(problem.v), {"page_table": table}


def whole_tokens(queries: int, page_tokens: int | None) -> int | None:
    """Return what blocks must divide so that no tile of one has a token that is not backed.

    ``queries`` are the most of a row, those of heads that share a KV head counted apart, as the
    kernel does. ``page_tokens`` are those of a physical page, ``None`` where it is no whole number.
    """
    if queries <= _SMALLEST_TILE:
        return None
    if page_tokens is None or page_tokens % _SMALLEST_TILE:
        return _SMALLEST_TILE // 2
    return page_tokens


def whole_tokens_of(problem: Problem) -> int | None:
    """Return :func:`whole_tokens` for ``problem``."""
    group = problem.q.shape[-2] // problem.k.shape[-2]
    token_bytes = problem.k.stride(1) * problem.k.itemsize
    pages = problem.page_bytes
    page_tokens = None if pages is None or pages % token_bytes else pages // token_bytes
    return whole_tokens(problem.most_queries * group, page_tokens)
