# SPDX-License-Identifier: Apache-2.0
"""Where few kernels of Triton's do what takes torch many: on most GPUs."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyvattn.attention.problem import FLOAT8
from pyvattn.attention.quantise import quantised_queries, row_of_query
from pyvattn.cuda_graphs import is_capturing

if TYPE_CHECKING:
    from pyvattn.attention.kv_scales import LayerScales
    from pyvattn.attention.problem import Problem

# From so many tokens on the device's time counts, and the host's is hidden behind a layer of a
# prompt. On an H200 8,192 tokens take some 16 us on the device, and 95 by torch's two operations,
# but 140 us of the host's time for any number, where torch's take 39.
_MANY = 1024
# Compute capabilities: what Triton supports, and where it converts to float8_e4m3fn.
_LEAST = (8, 0)
_LEAST_FLOAT8 = (8, 9)


def is_fused(slots: Tensor, positions: Tensor, new: Tensor, cached: Tensor) -> bool:
    """Whether :func:`append_fused` is to store ``new`` in ``cached``, not torch's operations.

    It is where it can and takes less time: for many tokens, for those that are quantised, and
    in steps that are captured.
    """
    if not (cached.is_cuda and slots.is_cuda and positions.is_cuda):
        return False
    many = new.numel() >= _MANY * cached.shape[-2] * cached.shape[-1]
    if not (many or new.dtype != cached.dtype or is_capturing()):
        return False
    least = _LEAST_FLOAT8 if cached.dtype in FLOAT8 else _LEAST
    return _capability(cached.get_device()) >= least


def append_fused(
    slots: Tensor,
    positions: Tensor,
    new: tuple[Tensor, Tensor],
    cached: tuple[Tensor, Tensor],
    scales: LayerScales | None,
) -> None:
    """Store, quantised by ``scales``: :func:`pyvattn.attention.append_triton.append_fused`."""
    # Kernels launch on torch's current device, which may be another one of several.
    with torch.cuda.device(cached[0].device):
        import_module("pyvattn.attention.append_triton").append_fused(
            slots, positions, new, cached, scales
        )


def queries_in_float8(problem: Problem) -> tuple[Tensor, Tensor]:
    """Return what :func:`pyvattn.attention.quantise.quantised_queries` does.

    Where Triton converts to float8, by its kernels; by torch's operations elsewhere.
    """
    q, kv_heads = problem.q, problem.k.shape[2]
    if not q.is_cuda or _capability(q.get_device()) < _LEAST_FLOAT8:
        return quantised_queries(problem)
    row = row_of_query(problem) if problem.packed else None
    small, scale = import_module("pyvattn.attention.quantise_triton").quantise_queries(
        q.reshape(-1, *q.shape[-2:]), row, len(problem.lengths), kv_heads, problem.k.dtype
    )
    return small.view(q.shape), scale


@cache
def _capability(device: int) -> tuple[int, int]:
    """Return the compute capability that Triton has to work with: (0, 0) where there is none."""
    try:
        import_module("pyvattn.attention.append_triton")
    except ImportError:  # torch for CUDA brings Triton on Linux; other builds may not
        return 0, 0
    return torch.cuda.get_device_capability(device)
