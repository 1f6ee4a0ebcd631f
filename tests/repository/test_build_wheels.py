# SPDX-License-Identifier: Apache-2.0
"""Which interpreters `make wheels` builds for, before it builds anything."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts/build_wheels.py"
VERSION = f"3.{sys.version_info.minor}"


@pytest.fixture
def wheels(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location("build_wheels", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return module


def _program(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def _answers(version: str = VERSION, headers: str = "true") -> str:
    said = f'{{"path": "/python", "version": "{version}", "headers": {headers}, '
    said += '"suffix": ".so", "include": "/include"}'
    return f"echo '{said}'"


def test_a_python_on_path_is_taken(wheels, tmp_path):
    found = _program(tmp_path / f"bin/python{VERSION}", _answers())
    assert wheels.find_python(VERSION) == str(found)


@pytest.mark.parametrize("shim", ["exit 127", _answers(headers="false")])
def test_one_that_fails_or_has_no_headers_gives_way_to_pyenvs(shim, wheels, tmp_path):
    _program(tmp_path / f"bin/python{VERSION}", shim)
    kept = _program(tmp_path / f"pyenv/versions/{VERSION}.9/bin/python3", _answers())
    assert wheels.find_python(VERSION) == str(kept)


def test_a_version_that_is_missing_is_an_error_before_anything_is_built(wheels, tmp_path):
    for minor in wheels.MINORS[:-1]:
        _program(tmp_path / f"bin/python3.{minor}", _answers(f"3.{minor}"))
    with pytest.raises(SystemExit, match=r"CPython 3\.14 with headers is not found.*WHEEL_PYTHONS"):
        wheels.find_pythons()
    _program(tmp_path / "bin/python3.14", _answers("3.14"))
    assert [python.version for python in wheels.find_pythons()] == [
        f"3.{minor}" for minor in wheels.MINORS
    ]


def test_the_package_says_that_it_runs_where_wheels_are_built_for(wheels):
    said = (SCRIPT.parents[1] / "pyproject.toml").read_text()
    named = re.findall(r'"Programming Language :: Python :: 3\.(\d+)"', said)
    assert [int(minor) for minor in named] == list(wheels.MINORS)


def test_a_named_python_without_headers_is_told_what_it_lacks(wheels, tmp_path):
    bare = _program(tmp_path / "bin/python", _answers(headers="false"))
    with pytest.raises(SystemExit, match=f"no headers.*python{VERSION}-dev"):
        wheels.ask(str(bare))


def test_the_interpreter_that_runs_this_is_understood(wheels):
    asked = wheels.ask(sys.executable)
    assert asked.version == VERSION
    assert asked.suffix.endswith(".so")


def test_debians_second_header_is_found_without_the_systems_others(wheels, monkeypatch, tmp_path):
    monkeypatch.setattr(wheels, "ROOM", tmp_path / "room")
    second = tmp_path / "include/x86_64-linux-gnu/python3.14/pyconfig.h"
    for header in (second, tmp_path / "include/x86_64-linux-gnu/sys/cdefs.h"):
        header.parent.mkdir(parents=True)
        header.touch()
    python = wheels.Interpreter("/python", "3.14", ".so", str(tmp_path / "include/python3.14"))
    folder = wheels.multiarch_headers(python)
    assert [p.name for p in (folder / "x86_64-linux-gnu").iterdir()] == ["python3.14"]
    assert (folder / "x86_64-linux-gnu/python3.14/pyconfig.h").samefile(second)


def test_a_python_that_keeps_its_headers_together_needs_no_second_folder(wheels, monkeypatch):
    monkeypatch.setattr(wheels, "ROOM", Path(wheels.os.environ["HOME"]))
    python = wheels.Interpreter("/python", "3.12", ".so", "/nowhere/include/python3.12")
    assert not list(wheels.multiarch_headers(python).iterdir())


@pytest.mark.parametrize("platform", ["manylinux_2_28_aarch64", "manylinux_2_27_aarch64"])
def test_a_wheel_for_an_older_glibc_passes(platform, wheels):
    wheels.check_platform(f"pyvattn-0.1.0-cp313-cp313-{platform}.whl", "aarch64")


@pytest.mark.parametrize(
    "platform", ["manylinux_2_34_aarch64", "manylinux_2_100_aarch64", "linux_aarch64"]
)
def test_a_wheel_for_a_newer_glibc_or_none_ends_the_build(platform, wheels):
    name = f"pyvattn-0.1.0-cp313-cp313-{platform}.whl"
    with pytest.raises(SystemExit, match=f"{name} is not for aarch64 with glibc 2.28"):
        wheels.check_platform(name, "aarch64")


def test_a_wheel_for_another_machine_ends_the_build(wheels):
    with pytest.raises(SystemExit, match="is not for aarch64"):
        wheels.check_platform("pyvattn-0.1.0-cp313-cp313-manylinux_2_28_x86_64.whl", "aarch64")
