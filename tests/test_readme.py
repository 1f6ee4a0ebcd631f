"""The figures in README.md are those of docs/results/."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_tables_are_what_the_results_say():
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "update_results.py", "--check"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
