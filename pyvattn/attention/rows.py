# SPDX-License-Identifier: Apache-2.0
"""What kernels that take a whole batch share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pyvattn.attention.problem import Problem


def blank_padding(out: Tensor, problem: Problem) -> Tensor:
    """Return ``out`` with zeros where a query stands before its row's first token.

    Without a causal mask it sees its row all the same, and ``out`` stays as it is. The
    host reads no value, so the call can be captured.
    """
    queries = out.shape[1]
    if queries == 1 or not problem.causal:
        return out
    first = queries - problem.device_lengths[:, None]
    padding = torch.arange(queries, device=out.device)[None, :] < first
    return out.masked_fill(padding[:, :, None, None], 0)


def consecutive(slots: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Split rows into ``(first, end)`` such that the slots in between rise by one."""
    first = 0
    for row in range(1, len(slots) + 1):
        if row == len(slots) or slots[row] != slots[row - 1] + 1:
            yield first, row
            first = row
