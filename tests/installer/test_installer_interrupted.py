# SPDX-License-Identifier: Apache-2.0
"""Whatever happens in the middle of an install or uninstall, the way back stays open."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from acts import install, uninstall
from change_faults import fail, on_change
from scratch_machine import KERNEL, elf_module

from driver_patch.install.install import Request
from driver_patch.install.journal import Journal
from driver_patch.install.machine import Failed
from driver_patch.install.status import read_status

CHECKOUT = Path(__file__).resolve().parents[2]
OURS = f"lib/modules/{KERNEL}/updates/pyvattn/nvidia-uvm.ko"

# More than there are changes, so that the last number proves that none was left out.
MOST = 60


def _killed_at(number: int, what: str, scratch) -> bool:
    """Run in a process of its own that dies just before its Nth change; False if it finished."""
    child = [sys.executable, "-S", str(Path(__file__).with_name("change_faults.py")), what]
    child += [str(scratch.root), KERNEL, str(scratch.built), str(number)]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(child, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode in (0, 77), done.stderr
    return done.returncode == 77


@pytest.fixture
def earlier_file(scratch):
    """Something at our place already, so that setting aside and putting back are exercised."""
    scratch.write(OURS, elf_module(filler=b"somebody's")).chmod(0o640)
    scratch.depmod()


@pytest.mark.usefixtures("earlier_file")
def test_an_install_killed_at_any_change_can_be_undone(scratch, machine):
    before = scratch.snapshot()
    for number in range(1, MOST):
        killed = _killed_at(number, "install", scratch)
        uninstall(machine)
        assert scratch.snapshot() == before, f"killed before change {number}"
        if not killed:
            break
    assert not killed
    assert number > 10


@pytest.mark.usefixtures("earlier_file")
def test_an_install_killed_at_any_change_can_be_repeated(scratch, machine):
    before = scratch.snapshot()
    for number in (3, 6, 9, 12):
        assert _killed_at(number, "install", scratch)
        install(machine, Request(scratch.built))
        assert (scratch.root / OURS).read_bytes() == scratch.built.read_bytes()
        uninstall(machine)
        assert scratch.snapshot() == before, f"killed before change {number}"


@pytest.mark.parametrize("earlier", [True, False], ids=["earlier file", "new directory"])
def test_an_uninstall_killed_at_any_change_can_be_repeated(earlier, scratch, machine, request):
    if earlier:
        request.getfixturevalue("earlier_file")
    before = scratch.snapshot()
    for number in range(1, MOST):
        install(machine, Request(scratch.built))
        killed = _killed_at(number, "uninstall", scratch)
        uninstall(machine)
        assert scratch.snapshot() == before, f"killed before change {number}"
        if not killed:
            break
    assert not killed
    assert number > 5


def test_status_tells_of_an_interrupted_install(scratch, machine):
    number = 1
    while Journal(machine).read() is None:
        assert _killed_at(number, "install", scratch)
        number += 1
    problems = read_status(machine).problems
    assert any("interrupted" in problem and "uninstall" in problem for problem in problems)


def test_status_tells_of_an_interrupted_uninstall(scratch, machine):
    install(machine, Request(scratch.built))
    number = 1
    while (scratch.root / OURS).exists():
        assert _killed_at(number, "uninstall", scratch)
        number += 1
    status = read_status(machine)
    assert status.ours == "interrupted while uninstalling"
    assert any("interrupted" in problem for problem in status.problems)


@pytest.mark.usefixtures("earlier_file")
def test_an_install_that_fails_at_any_change_undoes_itself(scratch, machine):
    before = scratch.snapshot()
    for number in range(1, MOST):
        with on_change(scratch.root, number, fail) as changes:
            error = _error_of(lambda: install(machine, Request(scratch.built)))
        if error is None:
            break
        assert "No space left" in str(error)
        assert "as it was before" in str(error)
        assert scratch.snapshot() == before, changes[number - 1]
    assert number > 10
    uninstall(machine)
    assert scratch.snapshot() == before


def _error_of(call) -> Failed | None:
    try:
        call()
    except Failed as error:
        return error
    return None


@pytest.mark.usefixtures("earlier_file")
def test_an_uninstall_that_fails_at_any_change_can_be_repeated(scratch, machine):
    before = scratch.snapshot()
    for number in range(1, MOST):
        install(machine, Request(scratch.built))
        with on_change(scratch.root, number, fail) as changes:
            error = _error_of(lambda: uninstall(machine))
        if error is None:
            break
        assert "Repeat the uninstall" in str(error)
        uninstall(machine)
        assert scratch.snapshot() == before, changes[number - 1]
    assert number > 5
    assert scratch.snapshot() == before
