# SPDX-License-Identifier: Apache-2.0
"""scripts/run_gpu_tests.py: a run counts only where something passed and nothing failed."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "run_gpu_tests.py"


@pytest.fixture
def runner(monkeypatch):
    spec = importlib.util.spec_from_file_location("run_gpu_tests", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "run_gpu_tests", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ABOUT", "")
    return module


def run(runner, monkeypatch, tmp_path, tests: str, *options: str) -> int:
    """Run the script on a folder with these tests in the place of tests/gpu."""
    folder = tmp_path / "tests" / "gpu"
    folder.mkdir(parents=True)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = alone: by itself\n")
    (folder / "test_some.py").write_text("import pytest\n" + tests)
    monkeypatch.setattr(runner, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["run", "--jobs", "1", "-p", "no:cacheprovider", *options])
    monkeypatch.setenv("COMMIT", "abc123")
    return runner.main()


PASSES = "def test_good(): pass\n@pytest.mark.alone\ndef test_memory(): pass\n"
SKIPS = "@pytest.mark.skip(reason='no GPU')\ndef test_a(): pass\n"


def test_both_phases_run_and_skips_are_counted_by_reason(runner, monkeypatch, tmp_path, capsys):
    assert run(runner, monkeypatch, tmp_path, PASSES + SKIPS) == 0
    said = capsys.readouterr().out
    assert "together: 1 passed, 0 failed, 1 skipped" in said
    assert "skipped 1: no GPU" in said
    assert "alone: 1 passed, 0 failed, 0 skipped" in said
    assert "commit abc123: passed" in said


@pytest.mark.parametrize(
    ("tests", "said"),
    [
        (SKIPS, "NOT passed: no test ran"),
        (PASSES + "def test_bad(): assert 0\n", "FAILED test_some::test_bad"),
        (PASSES + "def test_dies(): import os; os._exit(0)\n", "NOT passed"),
        (PASSES + "def test_waits(): import signal; signal.pause()\n", "exit 124"),
    ],
    ids=["all skipped", "one fails", "one ends the process", "one hangs"],
)
def test_a_run_that_does_not_count(runner, monkeypatch, tmp_path, capsys, tests, said):
    options = ("--phase", "together", *(("--limit", "6") if "waits" in tests else ()))
    assert run(runner, monkeypatch, tmp_path, tests, *options) == 1
    assert said in capsys.readouterr().out


STARTS_A_PROCESS = """
import subprocess, sys
def test_starts_one():
    left = "import time; time.sleep(100); print('nobody ended me')"
    subprocess.Popen([sys.executable, "-c", left], stdout=open({pipe!r}, "w"))
"""


def test_what_tests_started_ends_with_them(runner, monkeypatch, tmp_path):
    pipe = str(tmp_path / "pipe")
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        run(runner, monkeypatch, tmp_path, STARTS_A_PROCESS.format(pipe=pipe))
        os.set_blocking(reading, True)
        assert os.read(reading, 100) == b""  # the end: nothing holds it open for writing
    finally:
        os.close(reading)
