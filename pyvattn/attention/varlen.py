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
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from pyvattn.attention.features import Feature
from pyvattn.attention.optional import ListedKernel, why_not_flash
from pyvattn.attention.problem import Problem
from pyvattn.attention.rows import blank, blank_lse
from pyvattn.kernels import kernel_named

_MODULE = "torch.nn.attention.varlen"
_HEAD_DIMS = tuple(range(8, 257, 8))
_MOST_TOKENS = 2**31 - 1  # starts and lengths are int32


class VarlenKernel(ListedKernel):
    """FlashAttention as torch brings it, with a start and a length for each row."""

    known = kernel_named("torch-varlen")
    features = frozenset((Feature.WINDOW, Feature.STARTS, Feature.PACKED, Feature.LSE))
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
        out: Tensor = _attend(problem)
        return blank(out.view(problem.q.shape), problem)

    def attend_with_lse(self, problem: Problem) -> tuple[Tensor, Tensor]:
        """Attend with one call, told where each row begins."""
        out, lse = _attend(problem, with_lse=True)
        if not problem.packed:
            lse = lse.unflatten(1, problem.q.shape[:2]).transpose(0, 1)
        return blank(out.view(problem.q.shape), problem), blank_lse(lse, problem)


def _attend(problem: Problem, with_lse: bool = False) -> Any:
    """Return the result for queries one after the other, and the log-sum-exp, heads first."""
    begins = problem.device_slots * (problem.k.stride(0) // problem.k.stride(1))
    lengths = problem.device_lengths
    if problem.device_starts is not None:
        begins, lengths = begins + problem.device_starts, lengths - problem.device_starts
    batch = (
        problem.q.reshape(-1, *problem.q.shape[-2:]),
        _one_run(problem.k),
        _one_run(problem.v),
        problem.query_ends,
        # Only the starts are read where seqused_k is given; the last entry is an end.
        pad(begins, (0, 1)),
        problem.most_queries,
        problem.k.shape[1],
    )
    if _takes_lengths():
        return _call(batch, problem, lengths, with_lse)
    out, lse, *_ = _call_operator(batch, problem, lengths)
    return (out, lse) if with_lse else out


def _call(batch: tuple[Any, ...], problem: Problem, lengths: Tensor, with_lse: bool) -> Any:
    module = import_module(_MODULE)
    return module.varlen_attn(
        *batch,
        scale=problem.scale,
        window_size=problem.bounds,
        enable_gqa=True,
        seqused_k=lengths,
        **({"return_aux": module.AuxRequest(lse=True)} if with_lse else {}),
    )


def _call_operator(batch: tuple[Any, ...], problem: Problem, lengths: Tensor) -> Any:
    """Call what lies beneath varlen_attn, where torch's function lacks ``seqused_k``."""
    window = {}
    if Feature.WINDOW in problem.features:
        window = {
            f"window_size_{side}": bound
            for side, bound in zip(("left", "right"), problem.bounds, strict=True)
        }
    return torch.ops.aten._flash_attention_forward(
        *batch,
        0.0,  # dropout
        problem.causal,
        False,  # return_debug_mask
        scale=problem.scale,
        seqused_k=lengths,
        **window,
    )


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
