# SPDX-License-Identifier: Apache-2.0
"""To float8 and back, in torch's operations: what the kernels are held to."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pyvattn.attention.kv_scales import largest_finite, scale_of
from pyvattn.attention.problem import Problem


def quantised(values: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``values / scale`` in ``dtype``, rounded to the nearest, NaN as it is.

    ``values`` are ``[..., heads, head_dim]``, ``scale`` float32 of ``[..., heads]``. What is too
    large becomes the largest number of the dtype: torch alone would make it NaN.
    """
    most = torch.finfo(dtype).max
    return (values.float() / scale[..., None]).clamp(-most, most).to(dtype)


def dequantised(values: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what float8 ``values`` of ``[..., heads, head_dim]`` stand for, in ``dtype``."""
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    return (values.to(exact) * scale[..., None].to(exact)).to(dtype)


def quantised_queries(problem: Problem) -> tuple[Tensor, Tensor]:
    """Return the queries in the cache's dtype, and their scales, float32 ``[batch, kv_heads]``.

    A row's heads that share a KV head share a scale, that of the largest value in their queries.
    No value is read on the host.
    """
    heads, dtype = problem.k.shape[2], problem.k.dtype
    grouped = problem.q.unflatten(-2, (heads, -1))
    largest = largest_finite(grouped, (-2, -1))
    if not problem.packed:
        scale = scale_of(largest.amax(dim=1), dtype)
        each = scale[:, None]
    else:
        row = row_of_query(problem)
        most = largest.new_zeros(len(problem.lengths), heads)
        # index_reduce would do without the expanded rows, and warns that it may change.
        rows = row[:, None].expand(-1, heads)
        scale = scale_of(most.scatter_reduce(0, rows, largest, "amax"), dtype)
        each = scale[row]
    small = quantised(grouped, each[..., None].expand(grouped.shape[:-1]), dtype)
    return small.flatten(-3, -2), scale


def with_quantised_queries(problem: Problem) -> Problem:
    """Return ``problem`` with the float32 queries that those of :func:`quantised_queries` are."""
    small, scale = quantised_queries(problem)
    each = scale[row_of_query(problem)] if problem.packed else scale[:, None]
    group = small.shape[-2] // scale.shape[-1]
    whole = each.repeat_interleave(group, dim=-1).expand(small.shape[:-1])
    return replace(problem, q=dequantised(small, whole, torch.float32))


def row_of_query(problem: Problem) -> Tensor:
    """Return the row of each packed query, int64 ``[total]``."""
    ends = problem.query_ends[1:]
    query = torch.arange(problem.q.shape[0], dtype=torch.int32, device=ends.device)
    return torch.searchsorted(ends, query, right=True)
