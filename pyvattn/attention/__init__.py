# SPDX-License-Identifier: Apache-2.0
"""Attention over the contiguous cache, by kernels as their authors wrote them.

:func:`append` writes new tokens into slots, :func:`attend` lets queries attend
to them. Both take any layout: what a kernel sees is a plain
``[slots, tokens, kv_heads, head_dim]`` tensor. Importing this package needs
torch.
"""

from __future__ import annotations

from pyvattn.attention.append import append
from pyvattn.attention.attend import attend
from pyvattn.attention.features import Feature
from pyvattn.attention.flex import FlexKernel
from pyvattn.attention.kernel import Kernel
from pyvattn.attention.kv_scales import KVScales, LayerScales, scales_of, set_scales
from pyvattn.attention.problem import Problem
from pyvattn.attention.registry import guard_needed, kernel_infos, register
from pyvattn.attention.step import Step
from pyvattn.kernels import KernelInfo

__all__ = [
    "Feature",
    "FlexKernel",
    "KVScales",
    "Kernel",
    "KernelInfo",
    "LayerScales",
    "Problem",
    "Step",
    "append",
    "attend",
    "guard_needed",
    "kernel_infos",
    "register",
    "scales_of",
    "set_scales",
]
