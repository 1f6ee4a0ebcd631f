# SPDX-License-Identifier: Apache-2.0
"""No arrow points up, in Python and in C++; and the check that says so notices one."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts/check_layers.py"


def check(*args):
    return subprocess.run([sys.executable, SCRIPT, *args], capture_output=True, text=True)


def test_no_arrow_in_this_tree_points_up():
    result = check()
    assert result.stdout == "layers: no arrow points up\n"
    assert result.returncode == 0


@pytest.mark.parametrize(
    ("file", "text", "complaint"),
    [
        ("pyvattn/planner/x.py", "\nfrom pyvattn.cache import KVCache", "2: planner must not know"),
        ("pyvattn/calibrate/x.py", "import pyvattn.bench.api", "1: calibrate must not know bench"),
        (
            "pyvattn/cache.py",
            "def f():\n    from pyvattn import probe",
            "2: cache must not know",
        ),
        ("pyvattn/bench/x.py", "from pyvattn.demo.main import run", "bench must not know demo"),
        ("pyvattn/spec.py", "from pyvattn.brand_new import x", "brand_new has no place"),
        ("pyvattn/bench/x.py", "from pyvattn.cli.output import table", "bench must not know cli"),
        ("uvm_ext/drivers/x.cpp", '#include "cache/cache.hpp"', "1: drivers must not know cache"),
        ("uvm_ext/rows/x.hpp", '\n#include "emulation/x.hpp"', "2: rows must not know emulation"),
        ("uvm_ext/emulation/x.cpp", '#include "adaptors/x.hpp"', "emulation must not know adap"),
    ],
)
def test_an_arrow_up_is_named_with_file_and_line(tmp_path, file, text, complaint):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(text)
    result = check(tmp_path)
    assert result.returncode == 1
    assert result.stdout.startswith(f"{file}:")
    assert complaint in result.stdout


@pytest.mark.parametrize(
    ("file", "text"),
    [
        (
            "pyvattn/bench/x.py",
            "from pyvattn.cache import x\nfrom pyvattn.bench.api import y",
        ),
        ("pyvattn/geometry.py", "if TYPE_CHECKING:\n    from pyvattn.spec import CacheSpec"),
        ("cli/commands/x.py", "from pyvattn.cli.exits import Exit\nfrom pyvattn import bench"),
        ("uvm_ext/cache/x.cpp", '#include "rows/arena.hpp"\n#include <vector>'),
        ("uvm_ext/tests/x.cpp", '#include "emulation/x.hpp"'),
    ],
)
def test_arrows_down_are_not(tmp_path, file, text):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert check(tmp_path).returncode == 0
