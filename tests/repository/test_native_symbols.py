# SPDX-License-Identifier: Apache-2.0
"""The C++ core shares no symbol with what else is loaded, such as libtorch."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from pyvattn import _native


def test_the_module_exports_nothing_but_its_entry():
    """Also where its toolchain links the C++ library statically: two of them crash as one."""
    if shutil.which("nm") is None:
        pytest.skip("nm of binutils is not installed")
    done = subprocess.run(
        ["nm", "-D", "--defined-only", _native.__file__], capture_output=True, text=True, check=True
    )
    assert [line.split()[-1] for line in done.stdout.splitlines()] == ["PyInit__native"]
