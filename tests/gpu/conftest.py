# SPDX-License-Identifier: Apache-2.0
"""Tests that need an NVIDIA GPU; elsewhere each is skipped with the reason."""

from __future__ import annotations

import os
import warnings
from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).parent

# JAX would take most of the GPU's memory, from other tests as well.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

# What torch and the kernels' packages warn of in their own modules is not ours to mend.
WARNINGS = (
    "ignore",
    "error:::pyvattn",
    "error::ResourceWarning",
    "error::pytest.PytestUnraisableExceptionWarning",
)


@cache
def why_no_gpu() -> str | None:
    """Say why the tests of this folder cannot run here, or return ``None``."""
    try:
        import torch
    except ImportError:
        return "torch is not installed"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no CUDA device"
    from pyvattn import _native
    from pyvattn.errors import DriverUnavailable

    try:
        _native.driver_capabilities("cumem", 0)
    except DriverUnavailable as error:
        return str(error)
    return None


def pytest_configure(config: pytest.Config) -> None:
    # The long form prints the arguments of each frame. Tensors of a cache that is closed by
    # then lie on unmapped memory: reading them would break CUDA for all tests that follow.
    if config.option.tbstyle == "auto":
        config.option.tbstyle = "short"
    config.addinivalue_line("markers", "xdist_group(name): one pytest-xdist worker runs them all")
    if why_no_gpu() is None:
        _import_kernels()


def _import_kernels() -> None:
    """Import what kernels there are before the tests' modules do, where warnings are errors."""
    from pyvattn.attention import kernel_infos

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kernel_infos()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # The longest first, so that xdist's workers end at about the same time.
    items.sort(key=lambda item: item.path != HERE / "test_overread.py")
    for item in items:
        if HERE not in item.path.parents:
            continue
        item.add_marker(pytest.mark.gpu)
        item.add_marker(pytest.mark.filterwarnings(*WARNINGS))
        if reason := why_no_gpu():
            item.add_marker(pytest.mark.skip(reason=reason))
