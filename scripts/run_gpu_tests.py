#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Run tests/gpu on one commit and say what ran on what.

    python scripts/run_gpu_tests.py [--out FOLDER] [--jobs N] [--phase together|alone]
        [--limit SECONDS] [what else pytest takes]

Most tests run several at a time (pytest-xdist); those marked `alone`, which measure or
take the device's memory or read the kernel's log, run afterwards one by one. The exit
status is 0 only where something passed and nothing failed, hung or broke. COMMIT names
the commit where git cannot.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PHASES = {"together": "not alone", "alone": "alone"}
# Seconds after which a phase is ended.
LIMITS = {"together": 600, "alone": 170}

ABOUT = """
from importlib.metadata import version
import pyvattn, torch
from pyvattn.attention import kernel_infos
count = torch.cuda.device_count()
print("pyvattn", version("pyvattn"), pyvattn.__file__)
print("torch", torch.__version__, "CUDA", torch.version.cuda, "GPUs", count)
for i in range(count):
    print(f"cuda:{i}", torch.cuda.get_device_name(i), torch.cuda.get_device_properties(i).uuid)
print("kernels", *(k.name for k in kernel_infos() if k.unavailable is None))
"""


@dataclass
class Outcome:
    """What one phase came to."""

    phase: str
    exit_code: int
    seconds: float
    reported: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)

    @property
    def sound(self) -> bool:
        """Whether pytest came to its end without a failure; 5 is a phase without tests."""
        return self.reported and self.exit_code in (0, 5)


def commit() -> str:
    """The commit that is tested, `+` where the tree differs from it."""
    if given := os.environ.get("COMMIT"):
        return given
    describe = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=40", "--dirty=+"]
    done = subprocess.run(describe, capture_output=True, text=True)
    return done.stdout.strip() or "unknown (not a git checkout: set COMMIT)"


def kernel_driver() -> str:
    """The first line of what NVIDIA's kernel module says of itself."""
    try:
        return Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    except OSError as error:
        return str(error)


def run_phase(phase: str, jobs: int, folder: Path, limit: float | None, more: list[str]) -> Outcome:
    """Run one phase in a process of its own and read its report."""
    report = folder / f"{phase}.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "tests/gpu", "-q", "-m", PHASES[phase]]
    command += [f"--junitxml={report}", "--durations=15", *more]
    if phase == "together" and jobs > 1 and find_spec("xdist"):
        command += ["-n", str(jobs), "--dist", "loadgroup", "--max-worker-restart", "2"]
    print(f"\n######## {phase}: {' '.join(command)}", flush=True)
    began = time.monotonic()
    code = run_alone(command, limit or LIMITS[phase])
    outcome = Outcome(phase, code, time.monotonic() - began)
    if report.is_file():
        read_report(report, outcome)
    return outcome


def run_alone(command: list[str], limit: float) -> int:
    """Run a command; what it started is killed with it, or would hold the GPU's memory.

    xdist's workers outlive a pytest that is killed, and tests start processes of their own.
    Returns 124 where the command took longer than ``limit`` seconds.
    """
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        return 124
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def read_report(report: Path, outcome: Outcome) -> None:
    """Count the cases of a JUnit report."""
    outcome.reported = True
    for case in ET.parse(report).getroot().iter("testcase"):
        name = f"{case.get('classname', '').rsplit('.', 1)[-1]}::{case.get('name')}"
        kinds = {child.tag: child for child in case}
        if "failure" in kinds or "error" in kinds:
            outcome.counts["failed"] += 1
            outcome.failed.append(name)
        elif "skipped" in kinds:
            outcome.counts["skipped"] += 1
            outcome.skipped[kinds["skipped"].get("message", "")] += 1
        else:
            outcome.counts["passed"] += 1


def report_on(outcomes: list[Outcome]) -> bool:
    """Print what came of each phase; return whether the run counts as passed."""
    total: Counter[str] = Counter()
    print("\n######## summary of tests/gpu")
    for outcome in outcomes:
        total += outcome.counts
        counts = ", ".join(f"{outcome.counts[kind]} {kind}" for kind in ("passed", "failed"))
        print(
            f"{outcome.phase}: {counts}, {outcome.counts['skipped']} skipped, "
            f"exit {outcome.exit_code}, {outcome.seconds:.0f} s"
        )
        for reason, count in outcome.skipped.most_common():
            print(f"  skipped {count}: {reason}")
        for name in outcome.failed:
            print(f"  FAILED {name}")
    good = total["passed"] > 0 and all(outcome.sound for outcome in outcomes)
    why = "" if total["passed"] else ": no test ran"
    print(f"commit {commit()}: {'passed' if good else 'NOT passed' + why}", flush=True)
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description="Run tests/gpu on one commit.")
    parser.add_argument("--out", type=Path, help="keep the JUnit reports here")
    parser.add_argument("--jobs", type=int, default=min(8, max(1, (os.cpu_count() or 1) // 2)))
    parser.add_argument("--phase", choices=[*PHASES], help="only one of the two")
    parser.add_argument("--limit", type=float, help="seconds after which a phase is ended")
    options, more = parser.parse_known_args()
    folder = options.out or Path(tempfile.mkdtemp(prefix="pyvattn-gpu-tests-"))
    folder.mkdir(parents=True, exist_ok=True)
    print(f"commit {commit()}\n{kernel_driver()}", flush=True)
    subprocess.run([sys.executable, "-c", ABOUT], cwd=ROOT)
    phases = [options.phase] if options.phase else [*PHASES]
    outcomes = [run_phase(phase, options.jobs, folder, options.limit, more) for phase in phases]
    return 0 if report_on(outcomes) else 1


if __name__ == "__main__":
    # So that a run that is ended from outside takes its tests with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())
