# SPDX-License-Identifier: Apache-2.0
"""``pyvattn driver``: the installer's own command line, with a question before anything is done."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from scratch_machine import KERNEL, PATCHED, elf_module

from driver_patch.install import main as front_end
from driver_patch.install import sources
from pyvattn.cli.commands import driver
from pyvattn.errors import DriverUnavailable

OURS = "updates/pyvattn/nvidia-uvm.ko"


def call(scratch, *words: str) -> int:
    return front_end.main([*words, "--root", str(scratch.root), "--kernel", KERNEL])


@pytest.fixture
def answer(monkeypatch):
    """Let the command believe that somebody can be asked, and say what they answer."""

    def say(text: str) -> None:
        monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
        monkeypatch.setattr("builtins.input", lambda _prompt: text)

    return say


def test_install_and_uninstall_round_trip(scratch):
    before = scratch.snapshot()
    assert call(scratch, "install", "--module", str(scratch.built), "--yes") == 0
    assert scratch.preferred() == OURS
    assert call(scratch, "uninstall", "--yes") == 0
    assert scratch.snapshot() == before


def test_no_for_an_answer_touches_nothing(scratch, answer, capsys):
    before = scratch.snapshot()
    answer("n")
    assert call(scratch, "install", "--module", str(scratch.built)) == 1
    shown = capsys.readouterr().out
    assert "Steps:" in shown
    assert "Nothing was changed." in shown
    assert scratch.snapshot() == before


def test_yes_for_an_answer_installs(scratch, answer):
    answer("y")
    assert call(scratch, "install", "--module", str(scratch.built)) == 0
    assert scratch.preferred() == OURS


def test_where_nobody_can_be_asked_it_says_what_to_give(scratch, capsys):
    before = scratch.snapshot()
    assert call(scratch, "install", "--module", str(scratch.built)) == 2
    assert "--yes" in capsys.readouterr().err
    assert scratch.snapshot() == before


@pytest.mark.parametrize("words", [["plan"], ["install", "--dry-run"]])
def test_plans_touch_nothing(words, scratch, capsys):
    before = scratch.snapshot()
    assert call(scratch, *words, "--module", str(scratch.built)) == 0
    assert "run depmod" in capsys.readouterr().out
    assert scratch.snapshot() == before


def test_a_plan_can_be_seen_without_permission_to_carry_it_out(scratch, monkeypatch, capsys):
    before = scratch.snapshot()
    monkeypatch.setattr(os, "access", lambda _path, mode: mode != os.W_OK)
    assert call(scratch, "plan", "--module", str(scratch.built)) == 0
    assert "run this as root" in capsys.readouterr().out
    assert call(scratch, "install", "--module", str(scratch.built), "--yes") == 1
    said = capsys.readouterr().err.splitlines()
    assert "run this as root" in said[0]
    assert said[1:] == ["Nothing was changed."]
    assert scratch.snapshot() == before


def test_the_built_module_is_found_in_the_checkout(scratch, tmp_path, monkeypatch, capsys):
    checkout = tmp_path / "checkout"
    (checkout / "build/driver/one").mkdir(parents=True)
    (checkout / "Makefile").touch()
    module = checkout / "build/driver/one/nvidia-uvm.ko"
    module.write_bytes(elf_module(parm=PATCHED))
    monkeypatch.setattr(sources, "HOME", checkout)
    assert call(scratch, "plan") == 0
    assert str(module) in capsys.readouterr().out


@pytest.mark.parametrize("words", [["plan"], ["install", "--dry-run"], ["install", "--yes"]])
def test_a_refused_plan_is_one_message_with_its_remedy(words, scratch, capsys):
    scratch.run_driver(is_open=False)
    scratch.install_driver(license="NVIDIA")
    scratch.process(4711, "python3", "/dev/nvidia0")
    before = scratch.snapshot()
    assert call(scratch, *words, "--module", str(scratch.built)) == 1
    shown = capsys.readouterr()
    assert not shown.out
    reason, unchanged = shown.err.splitlines()
    assert reason.startswith("Refused: ")
    assert "Install these first" in reason
    assert unchanged == "Nothing was changed."
    assert scratch.snapshot() == before


def test_status_without_a_driver(scratch, capsys):
    scratch.remove_driver()
    (scratch.root / "proc/driver/nvidia/version").unlink()
    assert call(scratch, "status") == 3
    assert "none on this machine" in capsys.readouterr().out
    assert call(scratch, "status", "--json") == 3
    assert json.loads(capsys.readouterr().out)["has_driver"] is False


def test_status_as_json(scratch, capsys):
    scratch.load_uvm(patched=True)
    assert call(scratch, "status", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["loaded"]["is_patched"] is True
    assert found["running"]["is_open"] is True


def test_pyvattn_passes_its_arguments_and_the_exit_code_on(scratch):
    command = [sys.executable, "-c", "from pyvattn.cli import main; main()"]
    command += ["driver", "status", "--json"]
    command += ["--root", str(scratch.root), "--kernel", KERNEL]
    scratch.load_uvm(patched=True, release="1.2")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "1.2" in json.loads(done.stdout)["problems"][0]


def test_an_installation_without_the_installer_says_so(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(driver, "__file__", str(tmp_path / "pyvattn/cli/commands/driver.py"))
    with pytest.raises(DriverUnavailable, match="lacks the kernel patch and its installer"):
        driver.find_installer()


def test_an_install_passes_through_eight_rooms_at_most(scratch, monkeypatch):
    """Who changes how something is installed has that much to read."""
    folder = Path(sources.__file__).parent
    rooms = set()

    def note(frame, _event, _argument):
        path = Path(frame.f_code.co_filename)
        if path.parent == folder:
            rooms.add(path.stem)

    monkeypatch.setattr(front_end, "find_built", lambda _machine: scratch.built)
    sys.setprofile(note)
    try:
        assert call(scratch, "install", "--yes") == 0
    finally:
        sys.setprofile(None)
    rooms.add("sources")  # where it would have found what is built
    assert {"main", "install", "journal", "kmod"} < rooms
    assert len(rooms) <= 8
