# SPDX-License-Identifier: Apache-2.0
"""What holds for every test run."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

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
