# SPDX-License-Identifier: Apache-2.0
"""Attention written out plainly in float64: what the other kernels are held to."""

from __future__ import annotations

import torch
from torch import Tensor

from pyvattn.attention.features import Feature
from pyvattn.attention.optional import ListedKernel
from pyvattn.attention.problem import Problem
from pyvattn.attention.quantise import with_quantised_queries
from pyvattn.attention.rows import Row, by_row_with_lse
from pyvattn.attention.scores import alibi, visible
from pyvattn.kernels import kernel_named


class ReferenceKernel(ListedKernel):
    """Slow, exact, and with no limits on dtype or head dim."""

    known = kernel_named("reference")
    features = frozenset(Feature)

    def attend(self, problem: Problem) -> Tensor:
        """Attend to one row after the other."""
        return self.attend_with_lse(problem)[0]

    def attend_with_lse(self, problem: Problem) -> tuple[Tensor, Tensor]:
        """Attend to one row after the other; with scales, by queries in the cache's dtype."""
        asked = problem if problem.scales is None else with_quantised_queries(problem)
        out, lse = by_row_with_lse(asked, lambda row: _attend_row(row, asked), torch.float64)
        return out.to(problem.q.dtype), lse


def _attend_row(row: Row, problem: Problem) -> tuple[Tensor, Tensor]:
    group = row.q.shape[1] // row.k.shape[1]
    keys = row.k.double().repeat_interleave(group, dim=1)
    values = row.v.double().repeat_interleave(group, dim=1)
    scores = torch.einsum("qhd,khd->hqk", row.q.double(), keys) * problem.scale
    if problem.softcap:
        scores = problem.softcap * torch.tanh(scores / problem.softcap)
    if (bias := alibi(row, problem)) is not None:
        scores = scores + bias
    if (seen := visible(row, problem)) is not None:
        scores = scores.masked_fill(~seen, -torch.inf)
    # of a query that sees nothing: zeros, not the softmax of nothing
    weights = scores.softmax(dim=-1).nan_to_num(0.0)
    out = torch.einsum("hqk,khd->qhd", weights, values)
    return out.to(row.q.dtype), scores.logsumexp(dim=-1)
