# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "integrations"))


@pytest.fixture
def runtime(tmp_path, monkeypatch):
    """A runtime folder of the test's own; children get it by the environment."""
    folder = tmp_path / "run"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("PYVATTN_RUNTIME_DIR", str(folder))
    monkeypatch.delenv("PYVATTN_SHARED_BUDGET", raising=False)
    return folder
