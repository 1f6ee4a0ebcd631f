# SPDX-License-Identifier: Apache-2.0
"""The tiny models of tests/integrations are what public calls get as a model."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "integrations"))


@pytest.fixture(autouse=True, scope="session")
def _runtime_folder(tmp_path_factory):
    """Ledgers of shared memory are made in a folder of these tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYVATTN_RUNTIME_DIR", str(tmp_path_factory.mktemp("run", numbered=True)))
        yield
