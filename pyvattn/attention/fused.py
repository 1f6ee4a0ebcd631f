# SPDX-License-Identifier: Apache-2.0
"""Where tokens can be quantised and stored by one kernel: on GPUs with float8, by Triton."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pyvattn.attention.kv_scales import LayerScales

# Triton converts to float8_e4m3fn from here on.
_LEAST = (8, 9)


def is_fused(cached: Tensor) -> bool:
    """Whether :func:`append_quantised` can store in ``cached``; else torch's operations can."""
    return cached.is_cuda and _runs_on(cached.get_device())


def append_quantised(
    slots: Tensor,
    positions: Tensor,
    new: tuple[Tensor, Tensor],
    cached: tuple[Tensor, Tensor],
    scales: LayerScales,
) -> None:
    """Quantise and store: see :func:`pyvattn.attention.append_triton.append_quantised`."""
    # Kernels launch on torch's current device, which may be another one of several.
    with torch.cuda.device(cached[0].device):
        import_module("pyvattn.attention.append_triton").append_quantised(
            slots, positions, new, cached, scales
        )


@cache
def _runs_on(device: int) -> bool:
    try:
        import_module("pyvattn.attention.append_triton")
    except ImportError:  # torch for CUDA brings Triton on Linux; other builds may not
        return False
    return torch.cuda.get_device_capability(device) >= _LEAST
