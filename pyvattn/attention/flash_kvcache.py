# SPDX-License-Identifier: Apache-2.0
"""flash_attn_with_kvcache, which FlashAttention-2 and -3 both have.

The cache goes in whole: ``cache_batch_idx`` names the slot of each row,
``cache_seqlens`` its length and ``cache_leftpad`` its start. All stay on the device,
so a call can be captured in a CUDA graph. Queries that see nothing come out as zero.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor

from pyvattn.attention.optional import ListedKernel, why_not_flash
from pyvattn.attention.problem import UNLIMITED, Problem
from pyvattn.attention.rows import blank_lse
from pyvattn.errors import UnsupportedError

_HEAD_DIMS = tuple(range(8, 257, 8))
_NO_WINDOW = (UNLIMITED, UNLIMITED)


class FlashKvcacheKernel(ListedKernel):
    """What both versions share: one call for the whole batch."""

    capturable = True

    def unsupported(self, problem: Problem) -> str | None:
        """Say what of a batch the kernel does not take."""
        return why_not_flash(self.known, problem, _HEAD_DIMS)

    def attend(self, problem: Problem) -> Tensor:
        """Attend with one call."""
        out: Tensor = self._call(problem)
        return out.to(problem.q.dtype)

    def attend_with_lse(self, problem: Problem) -> tuple[Tensor, Tensor]:
        """Attend with one call."""
        out, lse, *_ = self._call(problem, return_softmax_lse=True)
        return out.to(problem.q.dtype), blank_lse(lse, problem)

    def rows(self, problem: Problem) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Return K and V as the kernel takes them, and what tells it how they lie."""
        return problem.k, problem.v, {}

    @abstractmethod
    def arguments(self, problem: Problem) -> tuple[Tensor, dict[str, Any]]:
        """Return the queries as the kernel takes them, and arguments that only this version has."""

    def _call(self, problem: Problem, **options: Any) -> Any:
        # What was not asked for is not named: the call is then the one that was measured.
        if (window := window_of(problem)) != _NO_WINDOW:
            options["window_size"] = window
        if problem.softcap:
            options["softcap"] = problem.softcap
        if problem.device_starts is not None:
            options["cache_leftpad"] = problem.device_starts
        q, own = self.arguments(problem)
        k, v, places = self.rows(problem)
        try:
            return self.module().flash_attn_with_kvcache(
                q,
                k,
                v,
                cache_seqlens=problem.device_lengths,
                cache_batch_idx=problem.device_slots,
                softmax_scale=problem.scale,
                causal=problem.causal,
                **own,
                **places,
                **options,
            )
        except RuntimeError as error:
            # Most builds tell what they were made without only when they are asked for it.
            _, found, lacking = str(error).partition("This flash attention build does not support ")
            if not found:
                raise
            raise UnsupportedError(
                f"kernel {self.name!r}: this build of it was made without "
                f"{lacking.splitlines()[0].rstrip('.')}; name another kernel"
            ) from error


def window_of(problem: Problem) -> tuple[int, int]:
    """Return the window as the kernel is told of it: causality is no window."""
    return problem.window_size if problem.window_size == _NO_WINDOW else problem.bounds
