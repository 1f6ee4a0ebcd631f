# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import cumem_library
import pytest

from pyvattn import _native


@pytest.fixture(scope="session")
def libcuda_builder(tmp_path_factory: pytest.TempPathFactory) -> cumem_library.Builder:
    """Builds libraries called libcuda.so.1; see cumem_library.py."""
    return cumem_library.Builder(tmp_path_factory.mktemp("objects"))


@pytest.fixture(scope="session")
def emulated_libcuda(
    libcuda_builder: cumem_library.Builder, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The emulated libcuda with everything that the real one has for us."""
    return libcuda_builder.build(tmp_path_factory.mktemp("libcuda"))


@pytest.fixture(autouse=True)
def _emulated_machine_as_new() -> Iterator[None]:
    """What a test did to the emulated machine, taking its memory say, meets no other test."""
    yield
    gc.collect()  # no driver of the machine may live on
    _native.emulated_nvidia.reset()
    _native.emulated_cuda.reset()
