# SPDX-License-Identifier: Apache-2.0
"""The library logs by module, is silent unless somebody listens, and never prints."""

from __future__ import annotations

import ast
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from pyvattn import CacheSpec, KVCache
from pyvattn.auto import first_available
from pyvattn.errors import DriverUnavailable

PACKAGE = Path(__file__).resolve().parents[2] / "pyvattn"
# A program of its own, which shows what it does. pyvattn/cli is a link to cli/.
PROGRAMS = ("demo", "cli")
# vLLM configures the loggers below "vllm", and an engine's user looks there.
FOR_VLLM = PACKAGE / "integrations" / "vllm"
SPEC = CacheSpec(1, 1, 64, "float32", max_slots=2, max_tokens=512)


def calls_in_the_library():
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.relative_to(PACKAGE).parts[0] not in PROGRAMS:
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    yield path, node


def test_no_module_prints():
    assert not [
        f"{path}:{call.lineno}"
        for path, call in calls_in_the_library()
        if isinstance(call.func, ast.Name) and call.func.id == "print"
    ]


def test_loggers_are_named_after_their_modules():
    named = {}
    for path, call in calls_in_the_library():
        if ast.unparse(call.func) == "logger_of":
            named[path] = ast.unparse(call.args[0])
        elif ast.unparse(call.func).endswith("getLogger"):
            assert path == PACKAGE / "logs.py" or FOR_VLLM in path.parents, path
    assert len(named) > 4
    assert set(named.values()) == {"__name__"}


def test_opening_says_what_was_chosen(caplog):
    with caplog.at_level(logging.INFO, "pyvattn"):
        KVCache(SPEC, device="cpu", memory="4MiB", page_size="64K", layout="layer").close()
    (record,) = (each for each in caplog.records if each.name == "pyvattn.resolve")
    assert "opened host" in record.message
    assert "pages of 64K, layout layer" in record.message


def test_what_auto_passes_over_is_said_with_the_reason(caplog):
    def ask(name):
        if name == "patched":
            raise DriverUnavailable("it is a Tuesday")

    with caplog.at_level(logging.DEBUG, "pyvattn"):
        first_available(True, ask)
    assert [(each.name, "it is a Tuesday" in each.message) for each in caplog.records] == [
        ("pyvattn.auto", True)
    ]


@pytest.mark.parametrize(
    ("listen", "heard"),
    [("", ""), ("logging.basicConfig()", "WARNING:pyvattn.planner.calibration:")],
)
def test_warnings_reach_who_listens_and_nobody_else(tmp_path, listen, heard):
    (tmp_path / "pyvattn").mkdir()
    (tmp_path / "pyvattn" / "calibration.json").write_text("no JSON")
    code = (
        f"import logging\n{listen}\nfrom pyvattn.planner import use_calibration\n"
        "use_calibration('host')"
    )
    environment = {"XDG_CONFIG_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment)
    assert done.returncode == 0
    assert done.stdout == b""
    assert done.stderr.decode().startswith(heard)
    assert bool(done.stderr) == bool(heard)
