# SPDX-License-Identifier: Apache-2.0
"""Triton kernels that quantise queries, to the bytes of :mod:`pyvattn.attention.quantise`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Queries of a program, where rows have several.
_QUERIES = 16


def quantise_queries(
    q: Tensor, row: Tensor | None, batch: int, kv_heads: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return ``q`` in ``dtype``, and its scales, float32 ``[batch, kv_heads]``.

    ``q`` is ``[total, q_heads, head_dim]``. ``row`` is the row of each query, int64 ``[total]``;
    ``None`` where all rows have the same number, one row after the other. One launch where that
    number is 1, two otherwise, which read no value on the host.
    """
    total, heads, dim = q.shape
    small = torch.empty(q.shape, dtype=dtype, device=q.device)
    scale = torch.ones(batch, kv_heads, dtype=torch.float32, device=q.device)
    if not small.numel():
        return small, scale
    alone = row is None and total == batch
    queries = 1 if alone else _QUERIES
    group = heads // kv_heads
    shape = {
        "KV_HEADS": kv_heads,
        "GROUP": group,
        "DIM": dim,
        "QUERIES": queries,
        "COLUMNS": triton.next_power_of_2(group * dim),
        "num_warps": 1 if alone else 4,
    }
    grid = (triton.cdiv(total, queries), kv_heads)
    most = None if alone else torch.zeros_like(scale)
    if most is not None:
        _find_largest[grid](q, row, most, total, total // batch, *q.stride(), **shape)
    limit = torch.finfo(dtype).max
    _quantise[grid](
        q, row, most, small, scale, total, total // batch, *q.stride(), LIMIT=limit, **shape
    )
    return small, scale


@triton.jit  # type: ignore[untyped-decorator]
def _find_largest(  # type: ignore[no-untyped-def]
    q,
    row,
    most,
    total,
    of_row,
    q_query,
    q_head,
    q_dim,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    QUERIES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    head = tl.program_id(1)
    query, exists, rows = _queries(row, total, of_row, QUERIES)
    values = _load(q, query, exists, head, q_query, q_head, q_dim, GROUP, DIM, COLUMNS)
    largest = _largest(values)
    first = tl.min(tl.where(exists, rows, tl.max(rows)))
    if first == tl.max(rows):
        # All are of one row: one atomic operation for them.
        tl.atomic_max(most + first * KV_HEADS + head, tl.max(largest))
    else:
        tl.atomic_max(most + rows * KV_HEADS + head, largest, mask=exists)


@triton.jit  # type: ignore[untyped-decorator]
def _quantise(  # type: ignore[no-untyped-def]
    q,
    row,
    most,
    small,
    scales,
    total,
    of_row,
    q_query,
    q_head,
    q_dim,
    LIMIT: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    QUERIES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    head = tl.program_id(1)
    query, exists, rows = _queries(row, total, of_row, QUERIES)
    values = _load(q, query, exists, head, q_query, q_head, q_dim, GROUP, DIM, COLUMNS)
    at = rows * KV_HEADS + head
    # Without what was found before, a row has no other query.
    largest = _largest(values) if most is None else tl.load(most + at, mask=exists, other=0.0)
    scale = tl.where(largest > 0, largest * (1 / LIMIT), 1.0)
    # All queries of a row store the same.
    tl.store(scales + at, scale, mask=exists)
    # Rounded as torch divides; Triton's own division is approximate.
    values = tl.div_rn(values, scale[:, None] + tl.zeros_like(values))
    values = tl.clamp(values, -LIMIT, LIMIT, propagate_nan=tl.PropagateNan.ALL)
    column = tl.arange(0, COLUMNS)
    place = (query[:, None] * KV_HEADS + head) * GROUP * DIM + column[None, :]
    mask = exists[:, None] & (column < GROUP * DIM)[None, :]
    tl.store(small + place, values.to(small.dtype.element_ty), mask=mask)


@triton.jit  # type: ignore[untyped-decorator]
def _queries(row, total, of_row, QUERIES: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the numbers of a program's queries, which of them exist, and their rows."""
    query = tl.program_id(0).to(tl.int64) * QUERIES + tl.arange(0, QUERIES)
    exists = query < total
    rows = query // of_row if row is None else tl.load(row + query, mask=exists, other=0)
    return query, exists, tl.where(exists, rows, 0)


@triton.jit  # type: ignore[untyped-decorator]
def _load(  # type: ignore[no-untyped-def]
    q,
    query,
    exists,
    head,
    q_query,
    q_head,
    q_dim,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Return the queries of the heads that share ``head``, one after the other: ``[q, columns]``"""
    column = tl.arange(0, COLUMNS)
    place = (head * GROUP + column // DIM) * q_head + column % DIM * q_dim
    mask = exists[:, None] & (column < GROUP * DIM)[None, :]
    values = tl.load(q + query[:, None] * q_query + place[None, :], mask=mask, other=0.0)
    return values.to(tl.float32)


@triton.jit
def _largest(values):  # type: ignore[no-untyped-def]
    """Return the largest magnitude of each query, passing over what is not finite."""
    sizes = tl.abs(values)
    return tl.max(tl.where(sizes < float("inf"), sizes, 0.0), axis=1)
