# SPDX-License-Identifier: Apache-2.0
"""FlashAttention-3, the `flash_attn_interface` module, through flash_attn_with_kvcache.

The cache goes in whole, as with FlashAttention-2. On Hopper the kernel loads K and
V with TMA, whole tiles at a time: up to 175 tokens past a row's length are read at
head dim 128 and 191 at 64, which the cache's tail guard backs.
"""

from __future__ import annotations

from torch import Tensor

from pyvattn.attention.optional import ListedKernel, why_not_flash
from pyvattn.attention.problem import Problem
from pyvattn.kernels import kernel_named

_HEAD_DIMS = tuple(range(8, 257, 8))


class FlashAttention3Kernel(ListedKernel):
    """FlashAttention-3: written for Hopper."""

    known = kernel_named("flash-attn-3")
    capturable = True

    def unsupported(self, problem: Problem) -> str | None:
        """Say what of a batch the kernel does not take."""
        return why_not_flash(self.known, problem, _HEAD_DIMS)

    def attend(self, problem: Problem) -> Tensor:
        """Attend with one call; the kernel itself writes zeros for queries that see nothing."""
        out: Tensor = self.module().flash_attn_with_kvcache(
            problem.q,
            problem.k,
            problem.v,
            cache_seqlens=problem.device_lengths,
            cache_batch_idx=problem.device_slots,
            softmax_scale=problem.scale,
            causal=problem.causal,
        )
        return out
