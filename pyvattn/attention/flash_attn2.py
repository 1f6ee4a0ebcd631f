# SPDX-License-Identifier: Apache-2.0
"""FlashAttention-2, the `flash-attn` package, through flash_attn_with_kvcache."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pyvattn.attention.features import Feature
from pyvattn.attention.flash_kvcache import FlashKvcacheKernel
from pyvattn.attention.problem import Problem
from pyvattn.kernels import kernel_named


class FlashAttention2Kernel(FlashKvcacheKernel):
    """FlashAttention-2: Ampere and later, decode with split KV."""

    known = kernel_named("flash-attn-2")
    features = frozenset(Feature) - {Feature.PACKED, Feature.QUANTISED, Feature.V_WIDTH}

    def arguments(self, problem: Problem) -> tuple[Tensor, dict[str, Any]]:
        """Return the queries and the slopes."""
        slopes = problem.alibi_slopes
        return problem.q, {} if slopes is None else {"alibi_slopes": slopes}
