# SPDX-License-Identifier: Apache-2.0
"""Two licences live in this repository: every file says which one is its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (".ci", "cli", "driver_patch", "examples", "pyvattn", "scripts", "tests", "uvm_ext")
SUFFIXES = [
    ".c",
    ".cpp",
    ".h",
    ".hpp",
    ".inc",
    ".Kbuild",
    ".map",
    ".mk",
    ".py",
    ".pyi",
    ".sh",
    ".toml",
    ".yaml",
]
NAMES = ("CMakeLists.txt", "Makefile")
APACHE = "SPDX-License-Identifier: Apache-2.0"
KERNEL = ("SPDX-License-Identifier: MIT OR GPL-2.0", "Linux-syscall-note) OR MIT")


def sources() -> Iterator[Path]:
    yield from (path for path in ROOT.iterdir() if path.is_file() and is_source(path))
    for folder in FOLDERS:
        for place, folders, names in os.walk(ROOT / folder):
            folders[:] = [name for name in folders if name not in ("__pycache__", ".pytest_cache")]
            paths = (Path(place, name) for name in names)
            yield from (path for path in paths if is_source(path))


def is_source(path: Path) -> bool:
    if path.suffix in SUFFIXES or path.name in NAMES:
        return True
    return not path.suffix and path.read_bytes().startswith(b"#!")


def test_every_source_file_names_its_licence():
    found = list(sources())
    assert len(found) > 500
    unnamed = []
    for path in found:
        inside = path.relative_to(ROOT).as_posix()
        head = path.read_text(encoding="utf-8").splitlines()[:2]
        of_kernel = inside.startswith("driver_patch/") and "/install/" not in inside
        allowed = (APACHE, *KERNEL) if not of_kernel else KERNEL
        if not any(name in line for name in allowed for line in head):
            unnamed.append(inside)
    assert not unnamed
