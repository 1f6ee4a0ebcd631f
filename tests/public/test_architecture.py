# SPDX-License-Identifier: Apache-2.0
"""Every name in docs/architecture.md is that of something that exists."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "architecture.md"
SOURCES = {".py", ".cpp", ".hpp", ".h", ".c", ".mk"}
FOLDERS = ("pyvattn", "cli", "uvm_ext", "driver_patch", "tests", "examples")
# The interfaces of others.
FOREIGN = {
    "cuMemMap", "cuMemSetAccess", "mmap", "MAP_FIXED", "__index__", "torch", "save", "fork",
    "ResourceWarning",
}  # fmt: skip


def text_of_page() -> str:
    """The page without its drawings."""
    return re.sub(r"```.*?```", "", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


def quoted() -> list[str]:
    return re.findall(r"`([^`]+)`", text_of_page())


def sources() -> Iterator[Path]:
    for folder in FOLDERS:
        yield from (path for path in (ROOT / folder).rglob("*") if path.suffix in SOURCES)


@pytest.fixture(scope="module")
def words() -> set[str]:
    found: set[str] = set()
    for path in sources():
        found |= set(re.findall(r"\w+", path.read_text(encoding="utf-8")))
    return found


def is_path(name: str) -> bool:
    return "/" in name or name.endswith((".py", ".hpp", ".cpp", ".md", ".h"))


def test_every_path_leads_somewhere():
    paths = [name for name in quoted() if is_path(name)]
    assert len(paths) > 15
    files = {path.name for path in sources()}
    lost = [p for p in paths if not (ROOT / p).exists() and not ("/" not in p and p in files)]
    assert not lost
    links = re.findall(r"\]\(([^)#:]+)\)", text_of_page())
    assert not [link for link in links if not (PAGE.parent / link).exists()]


def test_every_name_is_one_of_the_tree(words):
    names = {
        word
        for quote in quoted()
        if not is_path(quote)
        for word in re.findall(r"[A-Za-z_]\w{3,}", quote)
    }
    assert "RowBatch" in names
    assert not names - words - FOREIGN
