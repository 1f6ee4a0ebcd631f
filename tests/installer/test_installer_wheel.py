# SPDX-License-Identifier: Apache-2.0
"""The installer and the patch as a wheel carries them: the same code, with nothing beside it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from scratch_machine import KERNEL, RELEASE, ScratchMachine

tomllib = pytest.importorskip("tomllib", reason="pyproject.toml is read with Python 3.11's library")

CHECKOUT = Path(__file__).resolve().parents[2]
OURS = "updates/pyvattn/nvidia-uvm.ko"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """What a wheel installs of the patch, laid out as pyproject.toml says."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    packages = project["tool"]["scikit-build"]["wheel"]["packages"]
    site = tmp_path / "site-packages"
    for place, source in packages.items():
        if source.startswith("driver_patch/"):
            shutil.copytree(
                CHECKOUT / source,
                site / place,
                ignore=shutil.ignore_patterns("__pycache__"),
            )
    return site / "pyvattn"


def driver(package: Path, scratch: ScratchMachine, *words: str):
    script = package / "driver_patch/install/pyvattn-driver"
    command = [sys.executable, "-I", "-S", script, *words]
    command += ["--root", scratch.root, "--kernel", KERNEL]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")


def test_install_and_uninstall_from_a_wheel(package, scratch):
    before = scratch.snapshot()
    done = driver(package, scratch, "install", "--yes", "--module", str(scratch.built))
    assert done.returncode == 0, done.stderr
    assert scratch.preferred() == OURS
    assert driver(package, scratch, "status").returncode == 0
    assert driver(package, scratch, "uninstall", "--yes").returncode == 0
    assert scratch.snapshot() == before
    assert not list(package.rglob("__pycache__"))


def test_what_was_built_as_oneself_is_found_from_a_wheel(package, scratch, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SUDO_USER", raising=False)
    module = tmp_path / f"home/.cache/pyvattn/driver/build/{RELEASE}-{KERNEL}/nvidia-uvm.ko"
    module.parent.mkdir(parents=True)
    shutil.copy(scratch.built, module)
    done = driver(package, scratch, "install", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert str(module) in done.stdout


def test_the_patch_in_a_wheel_is_the_checkouts(package, tmp_path):
    """Whole and executable: every source that the checkout's patch adds, and no other."""
    trees = []
    for home in (CHECKOUT, package):
        tree = tmp_path / f"tree-{len(trees)}"
        _make_source(home, tree)
        script = home / "driver_patch/scripts/driver_patch.py"
        assert os.access(script, os.X_OK)
        subprocess.run([sys.executable, "-B", script, "apply", tree], check=True)
        trees.append({str(p.relative_to(tree)): p.read_bytes() for p in _files(tree)})
    assert trees[0] == trees[1]
    assert any("vattn" in name for name in trees[1])


def _files(tree: Path) -> list[Path]:
    return sorted(path for path in tree.rglob("*") if path.is_file())


def _make_source(home: Path, tree: Path) -> None:
    """A tree that has just the lines that the hooks look for."""
    lines: dict[str, list[str]] = {"nvidia-uvm/uvm.c": []}
    code = "import hooks; print('\\0'.join(f'{h.file}\\0{h.anchor}' for h in hooks.HOOKS))"
    done = subprocess.run(
        [sys.executable, "-B", "-c", code],
        cwd=home / "driver_patch/hooks",
        capture_output=True,
        text=True,
        check=True,
    )
    words = done.stdout.rstrip("\n").split("\0")
    for name, anchor in zip(words[::2], words[1::2], strict=True):
        if anchor not in lines.setdefault(name, []):
            lines[name].append(anchor)
    lines["Kbuild"] = [f'EXTRA_CFLAGS += -DNV_VERSION_STRING=\\"{RELEASE}\\"']
    for name, content in lines.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("\n".join(content) + "\n")
