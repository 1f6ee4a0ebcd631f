"""``pyvattn driver``: the same as make, with a question before anything is done."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from scratch_machine import KERNEL, PATCHED, elf_module

from driver_patch.install import __main__ as make_side
from pyvattn import errors
from pyvattn.cli.commands import driver
from pyvattn.cli.exits import exit_code


def call(scratch, *words: str, **options):
    arguments = [*words, "--root", str(scratch.root), "--kernel", KERNEL]
    return CliRunner().invoke(driver.command, arguments, **options)


@pytest.fixture
def terminal(monkeypatch):
    """Let the command believe that somebody can be asked."""
    monkeypatch.setattr(driver, "_can_ask", lambda: True)


def test_install_and_uninstall_round_trip(scratch):
    before = scratch.snapshot()
    done = call(scratch, "install", "--module", str(scratch.built), "--yes")
    assert done.exit_code == 0, done.output
    assert scratch.preferred() == "updates/pyvattn/nvidia-uvm.ko"
    assert call(scratch, "uninstall", "--yes").exit_code == 0
    assert scratch.snapshot() == before


@pytest.mark.usefixtures("terminal")
def test_no_for_an_answer_touches_nothing(scratch):
    before = scratch.snapshot()
    done = call(scratch, "install", "--module", str(scratch.built), input="n\n")
    assert "Steps:" in done.output
    assert done.exit_code == 1
    assert scratch.snapshot() == before


@pytest.mark.usefixtures("terminal")
def test_yes_for_an_answer_installs(scratch):
    done = call(scratch, "install", "--module", str(scratch.built), input="y\n")
    assert done.exit_code == 0, done.output
    assert scratch.preferred() == "updates/pyvattn/nvidia-uvm.ko"


def test_where_nobody_can_be_asked_it_says_what_to_give(scratch):
    before = scratch.snapshot()
    done = call(scratch, "install", "--module", str(scratch.built))
    assert done.exit_code == 2
    assert "--yes" in done.output
    assert scratch.snapshot() == before


@pytest.mark.parametrize("words", [["plan"], ["install", "--dry-run"]])
def test_plans_touch_nothing(words, scratch):
    before = scratch.snapshot()
    done = call(scratch, *words, "--module", str(scratch.built))
    assert done.exit_code == 0, done.output
    assert "run depmod" in done.output
    assert scratch.snapshot() == before


def test_the_built_module_is_found_in_the_checkout(scratch, tmp_path):
    checkout = tmp_path / "checkout"
    (checkout / "driver_patch/src").mkdir(parents=True)
    (checkout / "driver_patch/src/uvm_vattn.c").touch()
    (checkout / "build/driver/one").mkdir(parents=True)
    module = checkout / "build/driver/one/nvidia-uvm.ko"
    module.write_bytes(elf_module(parm=PATCHED))
    done = call(scratch, "plan", "--checkout", str(checkout))
    assert str(module) in done.output


def test_a_refused_plan_has_the_code_of_a_failed_check(scratch):
    scratch.run_driver(is_open=False)
    done = call(scratch, "plan", "--module", str(scratch.built))
    assert done.exit_code == 1
    assert "proprietary" in done.output


def test_status_without_a_driver(scratch):
    scratch.remove_driver()
    (scratch.root / "proc/driver/nvidia/version").unlink()
    done = call(scratch, "status")
    assert done.exit_code == 3
    assert "none on this machine" in done.output
    found = json.loads(call(scratch, "status", "--json").output)
    assert found["has_driver"] is False


def test_status_as_json(scratch):
    scratch.load_uvm(patched=True)
    found = json.loads(call(scratch, "status", "--json").output)
    assert found["loaded"]["is_patched"] is True
    assert found["running"]["is_open"] is True


@pytest.mark.parametrize(
    "error",
    [
        errors.InstallRefused("x"),
        errors.InstallError("x"),
        errors.DriverUnavailable("x"),
        errors.ConfigError("x"),
    ],
)
def test_make_and_the_command_line_agree_on_exit_codes(error):
    assert make_side.exit_code(error) == exit_code(error)
