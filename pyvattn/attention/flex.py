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
from pyvattn.attention.flex_tiles import Asked, attend_tiles
from pyvattn.attention.kernel import Kernel
from pyvattn.attention.problem import TORCH_DTYPES, UNLIMITED, Problem, once
from pyvattn.attention.rows import Row, by_row, by_row_with_lse
from pyvattn.attention.tiles import Keys, Tiles, cut, short_rows
from pyvattn.kernels import kernel_named

ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

# Queries of a KV head up to which torch's kernel for decode is left to choose.
_MOST_DECODED = 64


class FlexKernel(Kernel):
    """FlexAttention, compiled on CUDA, plain torch on the CPU.

    Rows of up to 128 queries are one call, where it is known that they lie in whole pages: see
    :mod:`pyvattn.attention.tiles`. Longer ones, float8 with scales, rings, and what returns the
    log-sum-exp are a call for each row.
    """

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
        """Attend to short rows together, and to one row of many queries after the other."""
        check_type("problem", problem, Problem)
        keys = Keys.of(problem) if problem.scales is None else None
        together = [] if keys is None else short_rows(problem)
        if keys is None or not together:
            return by_row(problem, lambda row: self._attend(problem, row)[0].transpose(0, 1))
        tiles = self._tiles(problem, keys, together)
        found = self._attend_tiles(problem, keys, tiles)
        if len(found) == sum(problem.host_counts):
            return found.view(problem.out_shape)
        out = by_row(
            problem, lambda row: self._attend(problem, row)[0].transpose(0, 1), but=set(together)
        )
        out[tiles.places] = found
        return out

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

    def _tiles(self, problem: Problem, keys: Keys, rows: list[int]) -> Tiles:
        shape = (keys, problem.q.shape[-2], problem.k.shape[2], problem.bounds)
        programs = _programs(problem.q.device)
        return once(problem, ("tiles", *shape), lambda: cut(problem, rows, keys, programs))

    def _attend_tiles(self, problem: Problem, keys: Keys, tiles: Tiles) -> Tensor:
        """Return the result of the rows in ``tiles``, ``[queries, q_heads, dim]``."""
        kv_heads = problem.k.shape[2]
        group = problem.q.shape[-2] // kv_heads
        q = problem.q if problem.packed else problem.q.flatten(0, 1)
        slopes = problem.alibi_slopes
        asked = Asked(
            change=self._change(problem, slopes),
            scale=problem.scale,
            group=group,
            variant=(
                self.name,
                q.dtype,
                q.shape[-1],
                problem.v.shape[-1],
                None if slopes is None else slopes.dim(),
                problem.softcap != 0,
                tuple(bound == UNLIMITED for bound in problem.bounds),
            ),
        )
        out = attend_tiles(
            tiles.gather(q, kv_heads),
            keys.sequence(problem.k),
            keys.sequence(problem.v),
            tiles,
            keys,
            asked,
        )
        return tiles.scatter(out, group)

    def _at_positions(self, problem: Problem, row: Row) -> ScoreMod:
        """Return :meth:`_change` for a row's own queries and keys."""
        change = self._change(problem, row.slopes(problem))
        # Filled on the device, because a copy from the host would make each row wait for the one
        # before; tensors, as the softcap.
        start, first, batch = (
            torch.full((), value, device=row.q.device)
            for value in (row.start, row.start + row.first, row.index)
        )

        def modified(score: Tensor, _: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return change(score, batch, head, query + first, key + start)

        return modified

    def _change(self, problem: Problem, slopes: Tensor | None) -> ScoreMod:
        """Return the user's functions and the problem's own as one, on token positions."""
        score_mod, mask_mod = self._score_mod, self._mask_mod
        left, right = problem.bounds
        # A tensor, so that a new value does not compile the kernel again, which for a second
        # float fails.
        softcap = torch.full((), problem.softcap, dtype=torch.float32, device=problem.q.device)
        capped = problem.softcap != 0

        def change(
            score: Tensor, batch: Tensor, head: Tensor, position: Tensor, token: Tensor
        ) -> Tensor:
            if capped:
                score = softcap * torch.tanh(score / softcap)
            if score_mod is not None:
                score = score_mod(score, batch, head, position, token)
            if slopes is not None:
                slope = slopes[head] if slopes.dim() == 1 else slopes[batch, head]
                score = score - slope * (position - token).abs()
            if mask_mod is not None:
                score = torch.where(mask_mod(batch, head, position, token), score, -float("inf"))
            if left != UNLIMITED:
                score = torch.where(position - token <= left, score, -float("inf"))
            if right != UNLIMITED:
                score = torch.where(token - position <= right, score, -float("inf"))
            return score

        return change


@cache
def _programs(device: torch.device) -> int:
    """Return how many programs of a kernel fill a device: two for each multiprocessor."""
    if device.type != "cuda":
        return 1
    return 2 * torch.cuda.get_device_properties(device).multi_processor_count


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention, dynamic=True)
