# SPDX-License-Identifier: Apache-2.0
"""Attention written out plainly in float64: what the other kernels are held to."""

from __future__ import annotations

import torch
from torch import Tensor

from pyvattn.attention.optional import ListedKernel
from pyvattn.attention.problem import Problem, by_row
from pyvattn.kernels import kernel_named


class ReferenceKernel(ListedKernel):
    """Slow, exact, and with no limits on dtype or head dim."""

    known = kernel_named("reference")

    def attend(self, problem: Problem) -> Tensor:
        """Attend to one row after the other."""
        return by_row(problem, lambda q, k, v: _attend_row(q, k, v, problem.causal, problem.scale))


def _attend_row(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Tensor:
    group = q.shape[1] // k.shape[1]
    keys = k.double().repeat_interleave(group, dim=1)
    values = v.double().repeat_interleave(group, dim=1)
    scores = torch.einsum("qhd,khd->hqk", q.double(), keys) * scale
    if causal:
        positions = torch.arange(k.shape[0], device=q.device)
        future = positions[None, :] > positions[-q.shape[0] :, None]
        scores = scores.masked_fill(future, float("-inf"))
    return torch.einsum("hqk,khd->qhd", scores.softmax(dim=-1), values).to(q.dtype)
