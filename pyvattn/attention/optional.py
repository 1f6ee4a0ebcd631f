# SPDX-License-Identifier: Apache-2.0
"""Kernels of packages that may not be installed."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType

import torch

from pyvattn.attention.kernel import Kernel
from pyvattn.attention.problem import Problem
from pyvattn.kernels import KnownKernel, not_installed, why_not_capable

FLASH_DTYPES = (torch.float16, torch.bfloat16)


class ListedKernel(Kernel):
    """A kernel that :mod:`pyvattn.kernels` describes."""

    known: KnownKernel

    def __init__(self) -> None:
        self.name, self.supports = self.known.name, self.known.supports
        self.guard_tokens = self.known.guard_tokens

    def unavailable(self) -> str | None:
        """Import what the kernel needs, and look for a device that runs it."""
        return why_not_importable(self.known) or why_no_device(self.known)

    def module(self) -> ModuleType:
        """Return the kernel's module, which :meth:`unavailable` found."""
        return import_module(self.known.module)


@cache
def why_not_importable(kernel: KnownKernel) -> str | None:
    """Import a kernel's module; return ``None``, or what went wrong and how to install it."""
    module = kernel.module
    try:
        import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and module.startswith(error.name):
            return not_installed(kernel)
        return f"{module} needs {error.name}, which is not installed: {kernel.install}"
    except Exception as error:  # a CUDA extension may fail in any way when it loads
        return f"{module} cannot be imported ({_first_line(error)}): {kernel.install}"
    return None


def why_no_device(kernel: KnownKernel, device: torch.device | None = None) -> str | None:
    """Say why a CUDA device (by default torch's current one) cannot run a kernel, or ``None``."""
    seen = kernel.least is not None and torch.cuda.is_available()
    return why_not_capable(kernel, torch.cuda.get_device_capability(device) if seen else None)


def why_not_flash(kernel: KnownKernel, problem: Problem, head_dims: tuple[int, ...]) -> str | None:
    """Say why a FlashAttention-like kernel cannot do ``problem``, or ``None``."""
    if problem.q.device.type != "cuda":
        return f"runs on CUDA devices, q is on {problem.q.device}"
    if problem.q.dtype not in FLASH_DTYPES:
        return f"takes float16 and bfloat16, q is {problem.q.dtype}"
    if problem.q.shape[-1] not in head_dims:
        return f"takes head dims {', '.join(map(str, head_dims))}, not {problem.q.shape[-1]}"
    return why_no_device(kernel, problem.q.device)


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
