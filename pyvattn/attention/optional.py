"""Kernels of packages that may not be installed."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType

import torch

from pyvattn.attention.problem import Problem

FLASH_DTYPES = (torch.float16, torch.bfloat16)
Capability = tuple[int, int]


@cache
def why_not_importable(module: str, install: str) -> str | None:
    """Import a module; return ``None``, or what went wrong and how to install it."""
    try:
        import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and module.startswith(error.name):
            return f"{module} is not installed: {install}"
        return f"{module} needs {error.name}, which is not installed: {install}"
    except Exception as error:  # a CUDA extension may fail in any way when it loads
        return f"{module} cannot be imported ({_first_line(error)}): {install}"
    return None


def load(module: str) -> ModuleType:
    """Return a module that :func:`why_not_importable` found."""
    return import_module(module)


def why_no_device(
    least: Capability, most: Capability | None = None, device: torch.device | None = None
) -> str | None:
    """Say why a CUDA device (by default torch's current one) lacks the compute capability.

    ``None`` where it has it.
    """
    if not torch.cuda.is_available():
        return "needs a CUDA device, and torch sees none"
    capability = torch.cuda.get_device_capability(device)
    if capability < least or (most is not None and capability > most):
        upper = f" to {most[0]}.{most[1]}" if most is not None else " or later"
        return (
            f"needs compute capability {least[0]}.{least[1]}{upper}, the device has "
            f"{capability[0]}.{capability[1]}"
        )
    return None


def why_not_flash(
    problem: Problem, head_dims: tuple[int, ...], least: Capability, most: Capability | None = None
) -> str | None:
    """Say why a FlashAttention-like kernel cannot do ``problem``, or ``None``."""
    if problem.q.device.type != "cuda":
        return f"runs on CUDA devices, q is on {problem.q.device}"
    if problem.q.dtype not in FLASH_DTYPES:
        return f"takes float16 and bfloat16, q is {problem.q.dtype}"
    if problem.q.shape[-1] not in head_dims:
        return f"takes head dims {', '.join(map(str, head_dims))}, not {problem.q.shape[-1]}"
    return why_no_device(least, most, problem.q.device)


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
