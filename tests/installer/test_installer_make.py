# SPDX-License-Identifier: Apache-2.0
"""``make install`` and ``make uninstall``, with a Python that has nothing but its library."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from scratch_machine import KERNEL, ScratchMachine

CHECKOUT = Path(__file__).resolve().parents[2]
OURS = "updates/pyvattn/nvidia-uvm.ko"


def make(scratch: ScratchMachine, target: str, **variables: object):
    """Run a target; -I -S keeps Python from seeing whatever is pip-installed here."""
    given = {
        "DRIVER_PYTHON": f"{sys.executable} -I -S",
        "DESTDIR": scratch.root,
        "KERNEL": KERNEL,
        **variables,
    }
    command = ["make", "-s", "-f", "driver_patch/install/install.mk", target]
    command += [f"{name}={value}" for name, value in given.items()]
    return subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)


def test_install_and_uninstall_leave_the_root_as_it_was(scratch):
    before = scratch.snapshot()
    done = make(scratch, "install", MODULE=scratch.built)
    assert done.returncode == 0, done.stderr
    assert scratch.preferred() == OURS
    assert "Nothing is reloaded now" in done.stdout
    done = make(scratch, "uninstall")
    assert done.returncode == 0, done.stderr
    assert "byte for byte as before" in done.stdout
    assert scratch.snapshot() == before


def test_a_dry_run_prints_the_plan_and_touches_nothing(scratch):
    before = scratch.snapshot()
    done = make(scratch, "install", MODULE=scratch.built, DRY_RUN=1)
    assert done.returncode == 0, done.stderr
    assert f"write {scratch.modules / OURS}" in done.stdout
    assert "Done." not in done.stdout
    assert scratch.snapshot() == before


def test_a_refusal_fails_with_one_message(scratch):
    scratch.process(4711, "python3", "/dev/nvidia0")
    before = scratch.snapshot()
    done = make(scratch, "install", MODULE=scratch.built)
    assert done.returncode != 0
    assert "Steps:" not in done.stdout
    assert done.stderr.startswith("Refused: the GPU is in use by python3 (pid 4711")
    assert done.stderr.count("Nothing was changed.") == 1
    assert scratch.snapshot() == before
    assert make(scratch, "install", MODULE=scratch.built, ALLOW_IN_USE=1).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["status"], 0),
        (["install", "--module", "{built}", "--dry-run"], 0),
        (["install", "--module", "/nowhere.ko"], 2),
        (["install", "--module", "{built}", "--key", "/nowhere"], 2),
        (["uninstall", "--kernel", "../x"], 2),
        (["uninstall"], 0),
    ],
)
def test_exit_codes(arguments, code, scratch):
    assert _entry(scratch, *arguments).returncode == code


def test_a_machine_without_a_driver_has_a_code_of_its_own(scratch):
    scratch.remove_driver()
    (scratch.root / "proc/driver/nvidia/version").unlink()
    done = _entry(scratch, "status")
    assert done.returncode == 3
    assert "none on this machine" in done.stdout
    assert not done.stderr
    assert _entry(scratch, "install", "--module", "{built}").returncode == 3


def test_something_that_needs_attention_fails(scratch):
    scratch.load_uvm(patched=True, release="1.2")
    assert _entry(scratch, "status").returncode == 1


def _entry(scratch: ScratchMachine, *arguments: str):
    words = [word.format(built=scratch.built) for word in arguments]
    if words[0] in ("install", "uninstall"):
        words += ["--yes"]
    if "--kernel" not in words:
        words += ["--kernel", KERNEL]
    script = CHECKOUT / "driver_patch/install/pyvattn-driver"
    command = [sys.executable, "-I", "-S", str(script), *words, "--root", str(scratch.root)]
    return subprocess.run(command, capture_output=True, text=True, check=False)
