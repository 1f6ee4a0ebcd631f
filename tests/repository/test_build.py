# SPDX-License-Identifier: Apache-2.0
"""How the C++ core is compiled: warnings stop developers, never a user's newer compiler."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def flags(tmp_path, *options):
    """Return the commands that compile the core, as a build would run them."""
    cmake = shutil.which("cmake") or shutil.which("cmake", path=ROOT / ".venv" / "bin")
    if cmake is None:
        pytest.skip("needs cmake")
    subprocess.run(
        [cmake, "-S", ROOT / "uvm_ext", "-B", tmp_path, "-DPYVATTN_PYTHON=OFF",
         "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON", *options],
        check=True,
        capture_output=True,
    )  # fmt: skip
    commands = json.loads((tmp_path / "compile_commands.json").read_text())
    return [one["command"].split() for one in commands]


def test_a_build_shows_warnings_and_stops_at_none(tmp_path):
    commands = flags(tmp_path)
    assert all("-Wall" in command and "-Werror" not in command for command in commands)


def test_a_developers_build_stops_at_warnings(tmp_path):
    assert all("-Werror" in command for command in flags(tmp_path, "-DPYVATTN_WERROR=ON"))
    for script in ("setup_env.sh", "sanitize.sh"):
        assert "PYVATTN_WERROR=ON" in (ROOT / "scripts" / script).read_text()
