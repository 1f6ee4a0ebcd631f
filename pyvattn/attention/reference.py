"""Attention written out plainly in float64: what the other kernels are held to."""

from __future__ import annotations

import torch
from torch import Tensor

from pyvattn.attention.problem import Kernel, Problem, by_row


class ReferenceKernel(Kernel):
    """Slow, exact, and with no limits on dtype or head dim."""

    name = "reference"
    supports = "every dtype, any head dim; in float64"
    guard_tokens = 0

    def attend(self, problem: Problem) -> Tensor:
        """See :meth:`Kernel.attend`."""
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
