# SPDX-License-Identifier: Apache-2.0
"""FlashAttention-3, the `flash_attn_interface` module, through flash_attn_with_kvcache.

On Hopper the kernel loads K and V with TMA, whole tiles at a time: up to 175 tokens past
a row's length are read at head dim 128 and 191 at 64, which the cache's tail guard backs.
"""

from __future__ import annotations

from typing import Any

from pyvattn.attention.features import Feature
from pyvattn.attention.flash_attn3_build import why_not_built, why_not_built_for
from pyvattn.attention.flash_kvcache import FlashKvcacheKernel
from pyvattn.attention.problem import Problem
from pyvattn.kernels import kernel_named


class FlashAttention3Kernel(FlashKvcacheKernel):
    """FlashAttention-3: written for Hopper. Builds of it may lack what others have."""

    known = kernel_named("flash-attn-3")
    features = frozenset(Feature) - {Feature.ALIBI}

    def unavailable(self) -> str | None:
        """Import the module, look for a device that runs it, and ask the build."""
        return super().unavailable() or why_not_built()

    def unsupported(self, problem: Problem) -> str | None:
        """Say what of a batch the kernel or this build of it does not take."""
        return super().unsupported(problem) or why_not_built_for(problem)

    def options(self, problem: Problem) -> dict[str, Any]:
        """Return where each row's queries begin, if they are packed."""
        if not problem.packed:
            return {}
        return {"cu_seqlens_q": problem.query_ends, "max_seqlen_q": problem.most_queries}
