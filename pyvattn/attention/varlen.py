# SPDX-License-Identifier: Apache-2.0
"""torch's own FlashAttention on sequences of unequal length, torch.nn.attention.varlen.

It comes with torch, so it runs where no other package is installed. A layer's K and V
go in as one run of tokens, from the first slot to the last: a row's keys begin where
its slot begins, ``seqused_k`` says how many there are, and nothing between the slots is
read. All of that stays on the device.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from inspect import signature

import torch
from torch import Tensor
from torch.nn.functional import pad

from pyvattn.attention.optional import ListedKernel, why_not_flash
from pyvattn.attention.problem import Problem
from pyvattn.attention.rows import blank_padding
from pyvattn.kernels import kernel_named

_MODULE = "torch.nn.attention.varlen"
_HEAD_DIMS = tuple(range(8, 257, 8))
_MOST_TOKENS = 2**31 - 1  # starts and lengths are int32


class VarlenKernel(ListedKernel):
    """FlashAttention as torch brings it, with a start and a length for each row."""

    known = kernel_named("torch-varlen")
    capturable = True

    def unsupported(self, problem: Problem) -> str | None:
        """Say what of a batch the kernel does not take, or whose slots it cannot count to."""
        for cached in (problem.k, problem.v):
            if cached.stride(0) % cached.stride(1):
                return "the slots of this cache do not lie a whole number of tokens apart"
            if cached.shape[0] * (cached.stride(0) // cached.stride(1)) > _MOST_TOKENS:
                return f"it counts to {_MOST_TOKENS} tokens, the slots of this cache span more"
        return why_not_flash(self.known, problem, _HEAD_DIMS)

    def attend(self, problem: Problem) -> Tensor:
        """Attend with one call, told where each row begins."""
        batch, queries, q_heads, head_dim = problem.q.shape
        starts_q = torch.arange(batch + 1, dtype=torch.int32, device=problem.q.device) * queries
        # Only the starts are read where seqused_k is given; the last entry is an end.
        spacing = problem.k.stride(0) // problem.k.stride(1)
        starts_k = pad(problem.device_slots * spacing, (0, 1))
        out = _varlen(
            problem.q.reshape(batch * queries, q_heads, head_dim),
            _one_run(problem.k),
            _one_run(problem.v),
            starts_q,
            starts_k,
            queries,
            problem,
        )
        return blank_padding(out.view(problem.q.shape), problem)


def _varlen(
    q: Tensor, k: Tensor, v: Tensor, starts_q: Tensor, starts_k: Tensor, most: int, of: Problem
) -> Tensor:
    """Call varlen_attn, or the operator beneath it where torch's function lacks ``seqused_k``."""
    longest = of.k.shape[1]
    if _takes_lengths():
        out: Tensor = import_module(_MODULE).varlen_attn(
            q,
            k,
            v,
            starts_q,
            starts_k,
            most,
            longest,
            scale=of.scale,
            window_size=(-1, 0) if of.causal else (-1, -1),
            enable_gqa=True,
            seqused_k=of.device_lengths,
        )
        return out
    out, *_ = torch.ops.aten._flash_attention_forward(
        q,
        k,
        v,
        starts_q,
        starts_k,
        most,
        longest,
        0.0,  # dropout
        of.causal,
        False,  # return_debug_mask
        scale=of.scale,
        seqused_k=of.device_lengths,
    )
    return out


def _one_run(cached: Tensor) -> Tensor:
    """View ``[slots, tokens, heads, dim]`` as ``[tokens from the first slot to the last, …]``."""
    slots, tokens, heads, dim = cached.shape
    apart, *strides = cached.stride()
    total = (slots - 1) * (apart // strides[0]) + tokens
    return cached.as_strided((total, heads, dim), tuple(strides))


@cache
def _takes_lengths() -> bool:
    """Whether varlen_attn has ``seqused_k`` and ``enable_gqa``: torch 2.11 lacks both."""
    takes = signature(import_module(_MODULE).varlen_attn).parameters
    return {"seqused_k", "enable_gqa"} <= takes.keys()
