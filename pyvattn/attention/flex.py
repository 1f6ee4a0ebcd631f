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
        return by_row(problem, lambda row: self._attend(problem, row)[0].transpose(0, 1))

    def attend_with_lse(self, problem: Problem) -> tuple[Tensor, Tensor]:
        """Attend to one row after the other."""
        check_type("problem", problem, Problem)

        def attend_row(row: Row) -> tuple[Tensor, Tensor]:
            out, aux = self._attend(problem, row, return_aux=AuxRequest(lse=True))
            return out[0].transpose(0, 1), aux.lse[0]

        return by_row_with_lse(problem, attend_row)

    def _attend(self, problem: Problem, row: Row, **options: Any) -> Any:
        q, k, v = row.q, row.k, row.v
        on_cuda = q.device.type == "cuda"
        call = _compiled() if on_cuda else flex_attention
        # The kernel for decode takes all queries of a KV head as one block, which spills
        # registers where they are many: the general kernel is far faster there.
        many = on_cuda and q.shape[0] * q.shape[1] > _MOST_DECODED * k.shape[1]
        return call(
            q.transpose(0, 1)[None],
            k.transpose(0, 1)[None],
            v.transpose(0, 1)[None],
            score_mod=self._at_positions(problem, row),
            scale=problem.scale,
            enable_gqa=q.shape[1] != k.shape[1],
            kernel_options={"BACKEND": "TRITON"} if many else None,
            **options,
        )

    def _at_positions(self, problem: Problem, row: Row) -> ScoreMod:
        """Return the user's functions and the problem's own as one, on token positions."""
        score_mod, mask_mod = self._score_mod, self._mask_mod
        left, right = problem.bounds
        slopes = row.slopes(problem)
        # Tensors, so that new values do not compile the kernel again, which for a second float
        # fails; filled on the device, because a copy from the host would make each row wait for
        # the one before.
        start, first, batch = (
            torch.full((), value, device=row.q.device)
            for value in (row.start, row.start + row.first, row.index)
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


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention, dynamic=True)
