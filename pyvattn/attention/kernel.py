# SPDX-License-Identifier: Apache-2.0
"""What an attention kernel must offer."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from pyvattn.arguments import check_type
from pyvattn.attention.features import Feature
from pyvattn.attention.problem import Problem
from pyvattn.errors import UnsupportedError


class Kernel(ABC):
    """One attention kernel; each lies in a file of its own."""

    #: What ``attend(kernel=...)`` takes.
    name: str
    #: What the kernel takes, in a few words for people.
    supports: str
    #: What it can do beyond attending to whole rows. One without Feature.LSE has no sinks either.
    features: frozenset[Feature] = frozenset()
    #: Whether slots and lengths are read on the device only, so that a CUDA graph can hold a call.
    capturable = False
    #: How many tokens past a row's length the kernel may read: the cache must guard as many.
    #: tests/gpu/overread.py measures it; what was not measured gets a cache's default guard.
    guard_tokens = 192

    def unavailable(self) -> str | None:
        """Say why the kernel cannot run on this machine, or return ``None``."""
        return None

    def unsupported(self, problem: Problem) -> str | None:
        """Say why the kernel cannot do ``problem``, whose features it has, or return ``None``."""
        return None

    def guard_for(self, problem: Problem) -> int:
        """Return how many tokens past a row's length it may read in ``problem``."""
        check_type("problem", problem, Problem)
        return self.guard_tokens

    @abstractmethod
    def attend(self, problem: Problem) -> Tensor:
        """Return the result, of ``problem.out_shape``; the problem has rows and queries.

        The device of the queries is torch's current one. Sinks are not the kernel's to add.
        """

    def attend_with_lse(self, problem: Problem) -> tuple[Tensor, Tensor]:
        """Return the result and the log-sum-exp, for kernels with ``Feature.LSE``.

        The latter is float32, ``[batch, q_heads, queries]`` or, of packed queries,
        ``[q_heads, total]``: the natural logarithm, minus infinity where a query sees nothing.
        """
        raise UnsupportedError(f"kernel {self.name!r} does not return the log-sum-exp")
