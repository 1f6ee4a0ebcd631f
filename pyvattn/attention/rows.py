# SPDX-License-Identifier: Apache-2.0
"""A batch taken row by row, and what kernels that take it whole share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyvattn.attention.problem import UNLIMITED, Problem
from pyvattn.attention.quantise import dequantised

_Place = slice | tuple[int, slice]


@dataclass(frozen=True)
class Row:
    """One row's queries, ``[queries, q_heads, dim]``, and views of the tokens that it attends to.

    ``k`` and ``v`` are ``[tokens, kv_heads, dim]``; of a float8 cache with scales, copies of what
    its elements stand for. ``index`` is the row's place in the batch, ``start`` the token of the
    slot at which ``k`` begins.
    """

    index: int
    q: Tensor
    k: Tensor
    v: Tensor
    start: int

    @property
    def first(self) -> int:
        """Where the first query stands among the tokens of ``k``, the last at the last of them."""
        return self.k.shape[0] - self.q.shape[0]

    def slopes(self, problem: Problem) -> Tensor | None:
        """The ALiBi slopes of the row, ``[q_heads]``."""
        slopes = problem.alibi_slopes
        return slopes[self.index] if slopes is not None and slopes.dim() == 2 else slopes


def by_row(problem: Problem, attend_row: Callable[[Row], Tensor]) -> Tensor:
    """Attend row by row, for kernels that take one length at a time.

    ``attend_row`` returns the shape of the row's queries, as wide as V. It gets those that see
    any token: of one that sees none, kernels give what they like.
    """
    out = problem.q.new_zeros(problem.out_shape)
    for row, place in _rows(problem, problem.q.dtype):
        out[place] = attend_row(row)
    return out


def by_row_with_lse(
    problem: Problem,
    attend_row: Callable[[Row], tuple[Tensor, Tensor]],
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """As :func:`by_row`; ``attend_row`` also returns the log-sum-exp, ``[q_heads, queries]``.

    ``dtype`` is what rows of a float8 cache are converted to, by default that of the queries.
    """
    out = problem.q.new_zeros(problem.out_shape)
    # of queries in the order of q, as `out` has them; heads come to the front at the end
    sums = torch.full(
        problem.q.shape[:-1], -torch.inf, dtype=torch.float32, device=problem.q.device
    )
    for row, place in _rows(problem, dtype or problem.q.dtype):
        attended, lse = attend_row(row)
        out[place] = attended
        sums[place] = lse.transpose(0, 1).float()
    return out, sums.transpose(-1, -2)


def _rows(problem: Problem, dtype: torch.dtype) -> Iterator[tuple[Row, _Place]]:
    """Yield each row with the queries that see a token, and where among ``problem.q`` they are."""
    end = 0
    _, right = problem.bounds
    numbers = zip(
        problem.host_slots,
        problem.host_starts,
        problem.host_lengths,
        problem.host_counts,
        strict=True,
    )
    for index, (slot, start, length, queries) in enumerate(numbers):
        end += queries
        tokens = length - start
        # A query sees tokens unless it stands further before the first one than it sees ahead.
        count = queries if right == UNLIMITED else min(queries, tokens + right)
        if tokens <= 0 or count <= 0:
            continue
        place: _Place = (
            slice(end - count, end) if problem.packed else (index, slice(queries - count, queries))
        )
        k, v = problem.k[slot, start:length], problem.v[slot, start:length]
        if problem.scales is not None:
            k = dequantised(k, problem.scales.k, dtype)
            v = dequantised(v, problem.scales.v, dtype)
        yield Row(index, problem.q[place], k, v, start), place


def blank(out: Tensor, problem: Problem) -> Tensor:
    """Return ``out`` with zeros for queries that see nothing; the host reads no value."""
    if (unseeing := _unseeing(problem)) is None:
        return out
    return out.masked_fill(unseeing[..., None, None], 0)


def blank_lse(lse: Tensor, problem: Problem) -> Tensor:
    """Return ``lse``, heads before queries, with minus infinity for queries that see nothing."""
    if (unseeing := _unseeing(problem)) is None:
        unseeing = (problem.device_lengths <= 0)[:, None]
    return lse.masked_fill(unseeing[..., None, :], -torch.inf)


def _unseeing(problem: Problem) -> Tensor | None:
    """Return which queries see no token, ``[batch, queries]`` or ``[total]``.

    ``None`` where that is only those of rows without tokens, which kernels know by themselves.
    """
    left, right = problem.bounds
    if problem.most_queries == 1 and problem.starts is None:
        return None
    if not problem.causal and (left, right) == (UNLIMITED, UNLIMITED) and problem.starts is None:
        return None
    position, starts, lengths = _positions(problem)
    last = lengths - 1 if right == UNLIMITED else torch.minimum(position + right, lengths - 1)
    first = starts if left == UNLIMITED else torch.maximum(position - left, starts)
    return last < first


def _positions(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Return where each query stands in its slot, and its row's start and length beside it."""
    lengths = problem.device_lengths
    starts = torch.zeros_like(lengths) if problem.device_starts is None else problem.device_starts
    ends = problem.query_ends
    if not problem.packed:
        queries = problem.q.shape[1]
        behind = queries - torch.arange(queries, device=lengths.device)
        return lengths[:, None] - behind, starts[:, None], lengths[:, None]
    query = torch.arange(problem.q.shape[0], dtype=torch.int32, device=lengths.device)
    row = torch.searchsorted(ends[1:], query, right=True)
    return lengths[row] - (ends[1:][row] - query), starts[row], lengths[row]


def consecutive(slots: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Split rows into ``(first, end)`` such that the slots in between rise by one."""
    first = 0
    for row in range(1, len(slots) + 1):
        if row == len(slots) or slots[row] != slots[row - 1] + 1:
            yield first, row
            first = row
