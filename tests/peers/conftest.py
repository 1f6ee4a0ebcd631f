# SPDX-License-Identifier: Apache-2.0
"""Tests that the authors of the library wrote, and its own model classes, with our cache.

`make test-peers` fetches the library's tests from its source distribution into build/peers;
nothing of them is kept in this repository.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "integrations"))

transformers = pytest.importorskip("transformers", reason="the peers are transformers' tests")


MARKERS = (
    "accelerate_tests",
    "flash_attn_test",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "torch_compile_test",
    "slow",
)


def pytest_configure(config):
    """Know the markers of the library's tests, which are strict here."""
    for marker in MARKERS:
        config.addinivalue_line("markers", f"{marker}: one of the library's")


@pytest.fixture(scope="session")
def library_tests():
    """The library's module of common model tests, without what its source distribution lacks."""
    folder = ROOT / "build" / "peers" / f"transformers-{transformers.__version__}" / "tests"
    if not (folder / "test_modeling_common.py").is_file():
        pytest.skip(f"{folder} is not there: `make test-peers` fetches it, with a network")
    from library import load

    return load(folder, ROOT / "build" / "peers" / "packages")
