# SPDX-License-Identifier: Apache-2.0
"""FlashAttention-2, the `flash-attn` package, through flash_attn_with_kvcache.

The cache goes in whole: ``cache_batch_idx`` names the slot of each row and
``cache_seqlens`` its length. Both stay on the device, so a call can be captured
in a CUDA graph.
"""

from __future__ import annotations

from torch import Tensor

from pyvattn.attention.optional import ListedKernel, why_not_flash
from pyvattn.attention.problem import Problem
from pyvattn.kernels import kernel_named

_HEAD_DIMS = tuple(range(8, 257, 8))


class FlashAttention2Kernel(ListedKernel):
    """FlashAttention-2: Ampere and later, decode with split KV."""

    known = kernel_named("flash-attn-2")
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
