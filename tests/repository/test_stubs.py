# SPDX-License-Identifier: Apache-2.0
"""The type stubs of the C++ core are those of the module that was built."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

GENERATE = Path(__file__).parents[2] / "scripts" / "generate_stubs.py"


def test_stubs_are_those_of_the_built_module():
    done = subprocess.run([sys.executable, GENERATE, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
