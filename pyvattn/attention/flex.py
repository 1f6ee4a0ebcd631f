# SPDX-License-Identifier: Apache-2.0
"""torch FlexAttention over the cache, with a score or mask function of the user's.

.. code-block:: python

    def alibi(score, batch, head, query, key):
        return score + (key - query) * slopes[head]

    register(FlexKernel("alibi", score_mod=alibi))
    attend(q, cache, layer, slots, lengths, kernel="alibi")

``query`` and ``key`` are token positions in the slot, ``batch`` is the row; a query before
the first token, which only attention that is not causal has, stands at a negative one. A
query whose every key is masked comes out as zero. Both functions are torch's (see
torch.nn.attention.flex_attention), traced on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, flex_attention

from pyvattn.arguments import check_callable, check_name, check_type
from pyvattn.attention.features import Feature
from pyvattn.attention.kernel import Kernel
from pyvattn.attention.problem import TORCH_DTYPES, UNLIMITED, Problem
from pyvattn.attention.rows import Row, by_row, by_row_with_lse
from pyvattn.kernels import kernel_named

ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

# How far torch's kernel counts from a row's first element, in int32: a token of 32 layers that lie
# side by side is 65,536 elements, and 32,768 such tokens are too many.
_MOST_ELEMENTS = 2**31 - 1
# Parts of a row are whole blocks of the kernel.
_BLOCK = 128
# Queries of a KV head up to which torch's kernel for decode is left to choose.
_MOST_DECODED = 64


class FlexKernel(Kernel):
    """FlexAttention, one call for each row; compiled on CUDA, plain torch on the CPU."""

    supports = kernel_named("flex").supports
    features = frozenset(Feature)
    guard_tokens = 0

    def __init__(
        self,
        name: str = "flex",
        *,
        score_mod: ScoreMod | None = None,
        mask_mod: MaskMod | None = None,
    ) -> None:
        check_name("name", name, such_as="flex")
        check_callable("score_mod", score_mod)
        check_callable("mask_mod", mask_mod)
        self.name = name
        self._score_mod = score_mod
        self._mask_mod = mask_mod

    def unsupported(self, problem: Problem) -> str | None:
        """Say which dtype or rows FlexAttention does not take."""
        check_type("problem", problem, Problem)
        if problem.q.dtype not in TORCH_DTYPES:
            return f"FlexAttention does not take {problem.q.dtype}"
        if problem.in_ring and (self._score_mod or self._mask_mod):
            return "its functions take tokens' positions, which a row that is a ring has not"
        return None

    def attend(self, problem: Problem) -> Tensor:
        """Attend to one row after the other."""
        check_type("problem", problem, Problem)
        return by_row(problem, lambda row: self._attend_row(problem, row, with_lse=False)[0])

    def attend_with_lse(self, problem: Problem) -> tuple[Tensor, Tensor]:
        """Attend to one row after the other."""
        check_type("problem", problem, Problem)

        return by_row_with_lse(problem, lambda row: self._attend_row(problem, row, with_lse=True))

    def _attend_row(self, problem: Problem, row: Row, *, with_lse: bool) -> tuple[Tensor, Tensor]:
        """Return ``[queries, q_heads, dim]`` and the log-sum-exp, if asked, ``[q_heads, queries]``.

        Keys that are more than torch's kernel can count to are attended to in parts.
        """
        parts = _parts(row)
        if len(parts) == 1 and not with_lse:
            out = self._attend(problem, row, parts[0])
            return out[0].transpose(0, 1), out.new_empty(0)
        found = [self._attend(problem, row, part, AuxRequest(lse=True)) for part in parts]
        outs, sums = [out[0] for out, _ in found], [aux.lse[0] for _, aux in found]
        out, lse = (outs[0], sums[0]) if len(parts) == 1 else _joined(outs, sums)
        return out.transpose(0, 1), lse

    def _attend(
        self, problem: Problem, row: Row, part: slice, return_aux: AuxRequest | None = None
    ) -> Any:
        q, k, v = row.q, row.k[part], row.v[part]
        on_cuda = q.device.type == "cuda"
        call = _compiled() if on_cuda else flex_attention
        # The kernel for decode takes all queries of a KV head as one block, which spills
        # registers where they are many: the general kernel is far faster there.
        many = on_cuda and q.shape[0] * q.shape[1] > _MOST_DECODED * k.shape[1]
        return call(
            q.transpose(0, 1)[None],
            k.transpose(0, 1)[None],
            v.transpose(0, 1)[None],
            score_mod=self._at_positions(problem, row, part.start),
            scale=problem.scale,
            enable_gqa=q.shape[1] != k.shape[1],
            kernel_options={"BACKEND": "TRITON"} if many else None,
            return_aux=return_aux,
        )

    def _at_positions(self, problem: Problem, row: Row, skipped: int) -> ScoreMod:
        """Return the user's functions and the problem's own as one, on token positions.

        ``skipped``: how many tokens of the row lie in front of those that are attended to.
        """
        score_mod, mask_mod = self._score_mod, self._mask_mod
        left, right = problem.bounds
        slopes = row.slopes(problem)
        # Tensors, so that new values do not compile the kernel again, which for a second float
        # fails; filled on the device, because a copy from the host would make each row wait for
        # the one before.
        start, first, batch = (
            torch.full((), value, device=row.q.device)
            for value in (row.start + skipped, row.start + row.first, row.index)
        )
        softcap = torch.full((), problem.softcap, dtype=torch.float32, device=row.q.device)
        capped = problem.softcap != 0

        def modified(score: Tensor, _: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            position, token = query + first, key + start
            if capped:
                score = softcap * torch.tanh(score / softcap)
            if score_mod is not None:
                score = score_mod(score, batch, head, position, token)
            if slopes is not None:
                score = score - slopes[head] * (position - token).abs()
            if mask_mod is not None:
                score = torch.where(mask_mod(batch, head, position, token), score, -float("inf"))
            if left != UNLIMITED:
                score = torch.where(position - token <= left, score, -float("inf"))
            if right != UNLIMITED:
                score = torch.where(token - position <= right, score, -float("inf"))
            return score

        return modified


def _parts(row: Row) -> list[slice]:
    """Return the tokens of a row in parts of about one size that the kernel can count to."""
    tokens = row.k.shape[0]
    stride = max(row.k.stride(0), row.v.stride(0))
    most = max(_BLOCK, _MOST_ELEMENTS // max(stride, 1) // _BLOCK * _BLOCK)
    if tokens <= most:
        return [slice(0, tokens)]
    blocks = -(-tokens // _BLOCK)
    size = -(-blocks // -(-tokens // most)) * _BLOCK
    return [slice(first, min(first + size, tokens)) for first in range(0, tokens, size)]


def _joined(outs: list[Tensor], sums: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return what parts of the keys give together, from the results of each and their sums.

    A query that sees nothing in any of them has zeros, and minus infinity.
    """
    lse = torch.stack([each.float() for each in sums])
    total = lse.logsumexp(0)
    weights = (lse - total.where(total > -torch.inf, 0)).exp()
    out = (torch.stack(outs).float() * weights[..., None]).sum(0)
    return out.to(outs[0].dtype), total


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention, dynamic=True)
