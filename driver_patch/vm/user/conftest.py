# SPDX-License-Identifier: MIT OR GPL-2.0
"""One line for each test, for the results of the emulated machine."""

from __future__ import annotations


def pytest_runtest_logreport(report) -> None:
    if report.when == "call" or report.outcome != "passed":
        word = {"passed": "ok", "failed": "FAIL", "skipped": "skip"}[report.outcome]
        print(f"\n{word} {report.nodeid.split('::', 1)[1]} {report.duration:.2f}s", flush=True)
