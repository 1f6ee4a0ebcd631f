# SPDX-License-Identifier: Apache-2.0
"""What scripts/check_userland.sh refuses before it makes a userland, which takes minutes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts/check_userland.sh"
WHEEL = "pyvattn-0.1.0-cp312-cp312-manylinux_2_28_x86_64.whl"


def refusal(*words: object) -> str:
    done = subprocess.run([SCRIPT, *map(str, words)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert not done.stdout
    return done.stderr


def test_it_says_what_it_takes():
    assert "usage: check_userland.sh WHEEL [SUITE [PREFIX]]" in refusal()


@pytest.mark.parametrize("name", ["pyvattn-0.1.0.tar.gz", "pyvattn-0.1.0-py3-none-any.whl"])
def test_a_file_that_is_no_wheel_for_a_machine_is_named(name, tmp_path):
    assert f"{tmp_path / name} is no wheel for x86_64 or aarch64" in refusal(tmp_path / name)


def test_a_wheel_that_was_not_built_is_named_with_what_builds_it(tmp_path):
    assert f"there is no {tmp_path / WHEEL}; make wheels" in refusal(tmp_path / WHEEL)


def test_a_folder_without_a_python_is_named(tmp_path):
    (tmp_path / WHEEL).touch()
    said = refusal(tmp_path / WHEEL, "trixie", tmp_path)
    assert f"there is no {tmp_path / 'bin/python3'}" in said
