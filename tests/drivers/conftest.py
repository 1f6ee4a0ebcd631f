from __future__ import annotations

from pathlib import Path

import cumem_library
import pytest


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
