# SPDX-License-Identifier: Apache-2.0
"""torch.nn.functional.scaled_dot_product_attention on views of the cache.

A row's K and V are a plain strided view of its slot, so no token is copied,
gathered or expanded. Rows are attended one by one: each has its own length,
and none pays for the longest.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from pyvattn.attention.optional import ListedKernel
from pyvattn.attention.problem import TORCH_DTYPES, Problem, by_row
from pyvattn.kernels import kernel_named


class SdpaKernel(ListedKernel):
    """torch's own attention: runs wherever torch does."""

    known = kernel_named("sdpa")

    def unsupported(self, problem: Problem) -> str | None:
        """Say which dtype torch does not take."""
        if problem.q.dtype not in TORCH_DTYPES:
            return f"torch's attention does not take {problem.q.dtype}"
        return None

    def attend(self, problem: Problem) -> Tensor:
        """Attend to one row after the other."""
        return by_row(problem, lambda q, k, v: _attend_row(q, k, v, problem.causal, problem.scale))


def _attend_row(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Tensor:
    """Attend ``[queries, q_heads, dim]`` to ``[tokens, kv_heads, dim]``."""
    if q.shape[0] == 1:
        return _attend_one(q, k, v, scale)
    mask = _causal_mask(q.shape[0], k.shape[0], q.device) if causal else None
    out = scaled_dot_product_attention(
        q.transpose(0, 1)[None],
        k.transpose(0, 1)[None],
        v.transpose(0, 1)[None],
        attn_mask=mask,
        is_causal=causal and mask is None,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
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
    return out.reshape(1, q_heads, dim)


def _causal_mask(queries: int, tokens: int, device: torch.device) -> Tensor | None:
    """Return a lower-right causal mask, or ``None`` where torch's own flag does the same."""
    if queries == tokens:
        return None
    return torch.ones(queries, tokens, dtype=torch.bool, device=device).tril(tokens - queries)
