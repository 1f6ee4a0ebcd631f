from __future__ import annotations

import os
from pathlib import Path

import pytest
from scratch_machine import KERNEL, ScratchMachine

from pyvattn.driver.machine import Machine


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ScratchMachine:
    made = ScratchMachine(tmp_path)
    monkeypatch.setenv("PATH", f"{made.bin}{os.pathsep}{os.environ['PATH']}")
    return made


@pytest.fixture
def machine(scratch: ScratchMachine) -> Machine:
    return Machine(scratch.root, KERNEL)
