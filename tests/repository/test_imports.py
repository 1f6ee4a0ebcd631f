# SPDX-License-Identifier: Apache-2.0
"""What importing pyvattn, and asking its command line for help, loads: next to nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"torch", "transformers", "numpy", "matplotlib", "rich", "cuda", "pyvattn._native"}


def loaded_by(code: str) -> set[str]:
    """Return the modules that ``code`` loads in a process of its own."""
    program = f"import sys\nbefore = set(sys.modules)\n{code}\nprint(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def test_importing_the_package_loads_its_errors_and_nothing_else():
    assert {name for name in loaded_by("import pyvattn") if "." not in name or "vattn" in name} <= {
        "pyvattn",
        "pyvattn.errors",
    }


RUN = """
from pyvattn.cli.app import cli
try:
    cli.main({arguments}, prog_name="pyvattn")
except SystemExit as exit:
    assert not exit.code
print()
"""


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_help_loads_no_more_than_it_needs(arguments):
    assert "click" in (loaded := loaded_by(RUN.format(arguments=arguments)))
    assert not HEAVY & loaded


def test_info_names_kernels_without_importing_what_they_need():
    loaded = loaded_by(RUN.format(arguments=["info"]))
    assert "pyvattn.kernels" in loaded
    assert not (HEAVY - {"rich", "cuda", "pyvattn._native"}) & loaded


def test_the_classes_are_there_without_torch():
    code = "import pyvattn\nassert pyvattn.KVCache and pyvattn.RowMap and pyvattn.CacheSpec"
    assert "pyvattn._native" in (loaded := loaded_by(code))
    assert not (HEAVY - {"pyvattn._native"}) & loaded
