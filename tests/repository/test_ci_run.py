# SPDX-License-Identifier: Apache-2.0
"""`.ci/run`: every step runs and is printed whole, and one that fails fails the run."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RUN = ROOT / ".ci" / "run"
TARGETS = re.findall(r"^ *step \S+ \d+ make (\S+)", RUN.read_text(encoding="utf-8"), re.MULTILINE)
GOOD = "%:\n\t@echo doing $@\n"

pytestmark = pytest.mark.skipif(
    shutil.which("make") is None or shutil.which("flock") is None, reason="needs make and flock"
)


@pytest.fixture
def command(tmp_path):
    """`.ci/run` in a folder of its own, whose Makefile the test writes."""
    (tmp_path / ".ci").mkdir()
    return shutil.copy(RUN, tmp_path / ".ci" / "run")


def run(command, makefile):
    Path(command).parents[1].joinpath("Makefile").write_text(makefile, encoding="utf-8")
    return subprocess.run([command], capture_output=True, text=True, check=False)


def test_every_step_is_a_target_and_the_test_command_comes_first():
    files = [ROOT / "Makefile", *(ROOT / "driver_patch").rglob("*.mk")]
    makefiles = "\n".join(file.read_text(encoding="utf-8") for file in files)
    for target in TARGETS:
        assert re.search(rf"^([a-z-]+ )*{target}( [a-z-]+)*:", makefiles, re.MULTILINE), target
    lines = RUN.read_text(encoding="utf-8").splitlines()
    assert next(line for line in lines if line.startswith("step ")).endswith(" make test")


def test_what_every_step_prints_is_printed(command):
    done = run(command, GOOD)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.findall(r"^doing (\S+)$", done.stdout, re.MULTILINE)[0] == "test"
    for target in TARGETS:
        assert f"doing {target}\n" in done.stdout


@pytest.mark.parametrize("target", ["test", "vm-hardening", "vm-test", "docs", "sanitize"])
def test_a_step_that_fails_fails_the_run_and_stops_no_other(command, target):
    done = run(command, f"{target}:\n\t@echo no; exit 3\n{GOOD}")
    assert done.returncode == 1
    summary = done.stdout.partition("######## summary")[2]
    assert len(re.findall(r" ok ", summary)) == len(TARGETS) - 1
    assert len(re.findall(r"FAILED \(2\)", summary)) == 1
    for other in TARGETS:
        assert (f"doing {other}\n" in done.stdout) == (other != target)


def test_a_run_that_is_stopped_ends_its_steps_and_prints_what_they_said(command, tmp_path):
    makefile = "docs vm-hardening:\n\t@echo $@ begins; echo >$@; exec sleep 1000\n" + GOOD
    (tmp_path / "Makefile").write_text(makefile, encoding="utf-8")
    process = subprocess.Popen([command], stdout=subprocess.PIPE, text=True)
    while not all((tmp_path / name).exists() for name in ("docs", "vm-hardening")):
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    # Ends only when nobody has the pipe or the logs open any more.
    printed = process.communicate(timeout=60)[0]
    assert process.returncode == 1
    assert "docs begins" in printed
    assert "vm-hardening begins" in printed
    assert printed.count("FAILED (143)") == 4
    assert "doing vm-test" not in printed
