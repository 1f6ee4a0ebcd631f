# SPDX-License-Identifier: Apache-2.0
"""No kernel reads further past a row's length than its adapter says."""

# ruff: noqa: E402
from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from pyvattn.attention import kernel_infos

GUARDS = {info.name: info.guard_tokens for info in kernel_infos() if info.unavailable is None}
PROGRAM = Path(__file__).parent / "overread.py"


@pytest.mark.parametrize("kernel", list(GUARDS) or ["none"])
@pytest.mark.parametrize("kind", ["decode", "chunk", "prefill"])
# Kernels with the longest tiles have them at the small head dims.
@pytest.mark.parametrize("head_dim", ["64", "128"])
def test_what_is_read_past_a_length_is_within_the_guard(kernel, head_dim, kind):
    """Nothing is mapped behind the guard: reading there ends the process's CUDA context."""
    done = subprocess.run(
        [sys.executable, PROGRAM, kernel, head_dim, kind],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    if "unsupported" in found:
        pytest.skip(found["unsupported"])
    assert found["unmapped"] is not None, "faults also with the most tokens that were tried"
    assert found["finite"] is not None, "wrong also with the most tokens that were tried"
    assert max(found["unmapped"], found["finite"]) <= GUARDS[kernel]
