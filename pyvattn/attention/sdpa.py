# SPDX-License-Identifier: Apache-2.0
"""torch.nn.functional.scaled_dot_product_attention on views of the cache.

A row's K and V are a plain strided view of its slot, so no token is copied,
gathered or expanded. Rows are attended one by one: each has its own length,
and none pays for the longest.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from pyvattn.attention.features import Feature
from pyvattn.attention.optional import ListedKernel
from pyvattn.attention.problem import TORCH_DTYPES, Problem
from pyvattn.attention.rows import Row, by_row
from pyvattn.attention.scores import alibi, visible
from pyvattn.kernels import kernel_named


class SdpaKernel(ListedKernel):
    """torch's own attention: runs wherever torch does."""

    known = kernel_named("sdpa")
    features = frozenset(
        (
            Feature.WINDOW,
            Feature.STARTS,
            Feature.ALIBI,
            Feature.PACKED,
            Feature.QUANTISED,
            Feature.V_WIDTH,
        )
    )

    def unsupported(self, problem: Problem) -> str | None:
        """Say which dtype torch does not take."""
        if problem.q.dtype not in TORCH_DTYPES:
            return f"torch's attention does not take {problem.q.dtype}"
        return None

    def attend(self, problem: Problem) -> Tensor:
        """Attend to one row after the other."""
        return by_row(problem, lambda row: _attend_row(row, problem))


def _attend_row(row: Row, problem: Problem) -> Tensor:
    unmasked = not problem.features & {Feature.WINDOW, Feature.ALIBI}
    if unmasked and row.q.shape[0] == 1:
        return _attend_one(row.q, row.k, row.v, problem.scale)
    # torch's own flag for causality aligns the first query with the first token.
    square = unmasked and problem.causal and row.first == 0
    out = scaled_dot_product_attention(
        row.q.transpose(0, 1)[None],
        row.k.transpose(0, 1)[None],
        row.v.transpose(0, 1)[None],
        attn_mask=None if square else _mask(row, problem),
        is_causal=square,
        scale=problem.scale,
        enable_gqa=row.q.shape[1] != row.k.shape[1],
    )
    return out[0].transpose(0, 1)


def _attend_one(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Attend one query: the heads that share a KV head stand as its queries."""
    _, q_heads, dim = q.shape
    kv_heads = k.shape[1]
    out = scaled_dot_product_attention(
        q.reshape(1, kv_heads, q_heads // kv_heads, dim),
        k.transpose(0, 1)[None],
        v.transpose(0, 1)[None],
        scale=scale,
    )
    return out.reshape(1, q_heads, v.shape[-1])


def _mask(row: Row, problem: Problem) -> Tensor | None:
    """Return torch's mask: what is seen or, with ALiBi, what is added to the scores."""
    seen, bias = visible(row, problem), alibi(row, problem)
    if bias is None:
        return seen
    if seen is not None:
        bias = bias.masked_fill(~seen, float("-inf"))
    return bias.to(row.q.dtype)
