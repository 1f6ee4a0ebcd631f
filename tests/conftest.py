"""What holds for every test run."""

from __future__ import annotations

import pytest


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A run in which no test passed has shown nothing: it fails."""
    if hasattr(session.config, "workerinput") or session.config.option.collectonly:
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if session.exitstatus == pytest.ExitCode.OK and not reporter.stats.get("passed"):
        reporter.write_line("no test passed: every one was skipped", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
