# SPDX-License-Identifier: Apache-2.0
"""FlashAttention-3, the `flash_attn_interface` module, through flash_attn_with_kvcache.

On Hopper the kernel loads K and V with TMA, whole tiles at a time: up to 175 tokens past
a row's length are read at head dim 128 and 191 at 64, which the cache's tail guard backs.
Tiles of float8 K and V have up to 224 tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyvattn.attention.features import Feature
from pyvattn.attention.flash_attn3_build import why_not_built, why_not_built_for
from pyvattn.attention.flash_kvcache import FlashKvcacheKernel, window_of
from pyvattn.attention.fused import queries_in_float8
from pyvattn.attention.problem import Problem
from pyvattn.attention.step import once
from pyvattn.kernels import kernel_named

# TMA copies 16 bytes at a time.
_FLOAT8_STEP = 16


class FlashAttention3Kernel(FlashKvcacheKernel):
    """FlashAttention-3: written for Hopper. Builds of it may lack what others have."""

    known = kernel_named("flash-attn-3")
    features = frozenset(Feature) - {Feature.ALIBI, Feature.V_WIDTH}
    #: Whether what :class:`~pyvattn.attention.step.Step` is for has been tried with this form.
    plans = True

    def unavailable(self) -> str | None:
        """Import the module, look for a device that runs it, and ask the build."""
        return super().unavailable() or why_not_built()

    def unsupported(self, problem: Problem) -> str | None:
        """Say what of a batch the kernel or this build of it does not take."""
        reason = super().unsupported(problem) or why_not_built_for(problem)
        if reason is not None or problem.scales is None:
            return reason
        if problem.k.dtype != torch.float8_e4m3fn:
            return f"takes float8_e4m3fn of the float8 dtypes, the cache is {problem.k.dtype}"
        if problem.k.shape[-1] % _FLOAT8_STEP:
            return f"takes float8 of head dims in steps of {_FLOAT8_STEP}"
        return None

    def guard_for(self, problem: Problem) -> int:
        """Return the longest tile of the dtype."""
        return self.known.guard_for(problem.k.dtype.itemsize)

    def arguments(self, problem: Problem) -> tuple[Tensor, dict[str, Any]]:
        """Return the queries, in float8 where the cache is, and where each row's begin."""
        q, options = problem.q, {}
        if problem.packed:
            options = {"cu_seqlens_q": problem.query_ends, "max_seqlen_q": problem.most_queries}
        if problem.scales is not None:
            q, options["q_descale"] = queries_in_float8(problem)
            for name, scale in problem.scales._asdict().items():
                options[f"{name}_descale"] = scale.expand(len(problem.lengths), -1)
        if (planned := self._planned(problem)) is not None:
            options["scheduler_metadata"] = planned
        return q, options

    def _planned(self, problem: Problem) -> Any:
        """Return the plan of a decode step that layers share, ``None`` for one of this call's own.

        Layers whose rows begin later have lengths or starts of their own.
        """
        make = getattr(self.module(), "get_scheduler_metadata", None)
        alike = not problem.packed and problem.starts is None
        if problem.step is None or make is None or not (self.plans and alike):
            return None
        batch, queries, heads, dim = problem.q.shape
        settings = {
            "batch_size": batch,
            "max_seqlen_q": queries,
            "max_seqlen_k": problem.k.shape[1],
            "num_heads_q": heads,
            "num_heads_kv": problem.k.shape[2],
            "headdim": dim,
            "headdim_v": problem.v.shape[-1],
            "qkv_dtype": problem.k.dtype,
            "causal": problem.causal,
            "window_size": window_of(problem),
            "has_softcap": problem.softcap > 0,
        }
        return once(
            problem.step,
            (problem.lengths,),
            tuple(settings.values()),
            lambda: make(cache_seqlens=problem.device_lengths, **settings),
        )
