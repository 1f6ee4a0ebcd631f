# SPDX-License-Identifier: Apache-2.0
"""What holds for every test run."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

# Plans do not depend on what the user of this machine calibrated.
os.environ["PYVATTN_CALIBRATION"] = "off"


@pytest.fixture(scope="session", autouse=True)
def _no_slab_is_left() -> Iterator[None]:
    """When the tests of a process are over, no slab of the host driver is left open."""
    yield
    gc.collect()
    left = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            if "pyvattn-slab" in os.readlink(descriptor):
                left.append(descriptor.name)
    assert not left, f"caches that were not closed left {len(left)} slabs open"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of single tests, for runs by hand."""
    parser.addoption(
        "--kills", type=int, default=8, help="members that tests/ledger kills one after the other"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Let fixtures close caches whose slots went with the test; tests of it use pytest.warns."""
    config.addinivalue_line("filterwarnings", "ignore:Slot.* dropped without:ResourceWarning")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A run in which no test passed has shown nothing: it fails."""
    if hasattr(session.config, "workerinput") or session.config.option.collectonly:
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if session.exitstatus == pytest.ExitCode.OK and not reporter.stats.get("passed"):
        reporter.write_line("no test passed: every one was skipped", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture
def two_ranks() -> Iterator[Callable[..., list[tuple[Any, int]]]]:
    """Run a program in two processes, which get their rank and the other arguments given.

    Returns for each what it printed as JSON behind ``SAID ``, or its errors, and its exit status.
    """
    begun = []

    def run(program: str, *arguments: object) -> list[tuple[Any, int]]:
        environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
        for rank in range(2):
            command = [sys.executable, "-c", program, str(rank), *map(str, arguments)]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            begun.append(subprocess.Popen(command, env=environment, **pipes))
        found = []
        for process in begun:
            out, err = process.communicate(timeout=500)
            said = [line for line in out.splitlines() if line.startswith("SAID ")]
            found.append((json.loads(said[0][5:]) if said else err, process.returncode))
        return found

    yield run
    for process in begun:
        process.kill()
        process.wait()
