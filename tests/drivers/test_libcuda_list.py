# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for libcuda have every function that the core asks the library for."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pyvattn import _native

MACHINE = Path(__file__).resolve().parents[2] / "driver_patch" / "vm" / "user" / "libcuda.c"


def exported(source: str) -> set[str]:
    """Return what a C file exports, its macros expanded, the headers left out."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler here")
    plain = re.sub(r"^\s*#\s*include.*$", "", source, flags=re.MULTILINE)
    command = [compiler, "-E", "-P", "-x", "c", "-"]
    expanded = subprocess.run(command, input=plain, capture_output=True, text=True, check=True)
    return set(re.findall(r'visibility\("default"\)\)\)\s*int\s+(\w+)\s*\(', expanded.stdout))


def test_the_emulated_machine_exports_what_the_core_loads():
    missing = set(_native.libcuda_symbols()) - exported(MACHINE.read_text(encoding="utf-8"))
    assert not missing, f"{MACHINE.name} lacks what uvm_ext/drivers/libcuda.hpp lists"
