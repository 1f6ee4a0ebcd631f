# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from scratch_machine import KERNEL, ScratchMachine

# The installer is no part of the package: it runs from the checkout that holds it.
sys.path.append(str(Path(__file__).resolve().parents[2]))

from driver_patch.install.machine import Machine


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ScratchMachine:
    made = ScratchMachine(tmp_path)
    monkeypatch.setenv("PATH", f"{made.bin}{os.pathsep}{os.environ['PATH']}")
    return made


@pytest.fixture
def machine(scratch: ScratchMachine) -> Machine:
    return Machine(scratch.root, KERNEL)
