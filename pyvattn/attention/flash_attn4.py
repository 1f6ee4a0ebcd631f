# SPDX-License-Identifier: Apache-2.0
"""FlashAttention-4, `flash_attn.cute`, through flash_attn_varlen_func.

It takes no index of batch rows, so rows whose slots follow each other go in
together, as one view of the cache with ``seqused_k`` for the lengths.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyvattn.attention.optional import ListedKernel, why_not_flash
from pyvattn.attention.problem import Problem
from pyvattn.attention.rows import blank, consecutive
from pyvattn.kernels import kernel_named

_HEAD_DIMS = (64, 96, 128)
_HOPPER_HEAD_DIMS = (64, 96, 128, 192, 256)


class FlashAttention4Kernel(ListedKernel):
    """FlashAttention-4: Hopper and Blackwell, compiled at the first call of each shape."""

    known = kernel_named("flash-attn-4")

    def unsupported(self, problem: Problem) -> str | None:
        """Say what of a batch the kernel does not take; Hopper takes more head dims."""
        hopper = problem.q.is_cuda and torch.cuda.get_device_capability(problem.q.device)[0] == 9
        head_dims = _HOPPER_HEAD_DIMS if hopper else _HEAD_DIMS
        return why_not_flash(self.known, problem, head_dims)

    def attend(self, problem: Problem) -> Tensor:
        """Attend with one call for each run of consecutive slots."""
        out = torch.empty_like(problem.q)
        slots = problem.host_slots
        for first, end in consecutive(slots):
            rows, cached = slice(first, end), slice(slots[first], slots[first] + end - first)
            out[rows] = self._attend(problem, rows, cached)
        return blank(out, problem)

    def _attend(self, problem: Problem, rows: slice, cached: slice) -> Tensor:
        result = self.module().flash_attn_varlen_func(
            problem.q[rows],
            problem.k[cached],
            problem.v[cached],
            seqused_k=problem.device_lengths[rows],
            softmax_scale=problem.scale,
            causal=problem.causal,
        )
        out: Tensor = result[0] if isinstance(result, tuple) else result
        return out
