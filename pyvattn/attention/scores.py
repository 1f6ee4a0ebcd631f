# SPDX-License-Identifier: Apache-2.0
"""What a window, causality and ALiBi do to the scores of a row, for kernels that take a mask."""

from __future__ import annotations

import torch
from torch import Tensor

from pyvattn.attention.problem import UNLIMITED, Problem
from pyvattn.attention.rows import Row


def distances(row: Row) -> Tensor:
    """Return how far each token stands behind each query, ``[queries, tokens]``."""
    tokens = torch.arange(row.k.shape[0], device=row.q.device)
    queries = torch.arange(row.q.shape[0], device=row.q.device) + row.first
    return queries[:, None] - tokens[None, :]


def visible(row: Row, problem: Problem) -> Tensor | None:
    """Return which tokens each query sees, ``[queries, tokens]``; ``None``: all of them."""
    left, right = problem.bounds
    # One query at the end of its row has nothing to its right.
    if row.q.shape[0] == 1:
        right = UNLIMITED
    if (left, right) == (UNLIMITED, UNLIMITED):
        return None
    behind = distances(row)
    seen = torch.ones_like(behind, dtype=torch.bool)
    if left != UNLIMITED:
        seen &= behind <= left
    if right != UNLIMITED:
        seen &= behind >= -right
    return seen


def alibi(row: Row, problem: Problem) -> Tensor | None:
    """Return what ALiBi adds to the scores, ``[q_heads, queries, tokens]`` in float32."""
    slopes = row.slopes(problem)
    return None if slopes is None else -slopes[:, None, None] * distances(row).abs()
