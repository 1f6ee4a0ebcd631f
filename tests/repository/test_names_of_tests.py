# SPDX-License-Identifier: Apache-2.0
"""The names of test modules: pytest imports them by these alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]


def test_no_two_modules_have_the_same():
    """Two of them stop the run of both, but not of either folder alone."""
    names = Counter(path.name for path in TESTS.rglob("test_*.py"))
    assert [name for name, times in names.items() if times > 1] == []
