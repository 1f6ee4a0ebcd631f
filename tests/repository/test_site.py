# SPDX-License-Identifier: Apache-2.0
"""The documentation site has every page and every public module; `make docs` builds it."""

from __future__ import annotations

import importlib
import pkgutil
import re
import sys
from pathlib import Path

import pytest

import pyvattn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "site"))
import pages  # noqa: E402

CONFIG = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")


def test_every_page_is_in_the_navigation():
    named = set(re.findall(r"([\w/-]+\.md)$", CONFIG.partition("\nnav:")[2], re.MULTILINE))
    there = {path.relative_to(pages.DOCS).as_posix() for path in pages.DOCS.rglob("*.md")}
    assert named == there | set(pages.READMES) | {"not-verified.md"}


def test_every_public_module_has_a_page():
    imported = set()
    for each in pkgutil.walk_packages(pyvattn.__path__, "pyvattn."):
        if each.name.startswith((*pages._NOT_LIBRARY, "pyvattn.__main__")):
            continue
        try:
            module = importlib.import_module(each.name)
        except ImportError:  # of an engine that is not installed here
            continue
        if "__all__" in vars(module):
            imported.add(each.name)
    assert {"pyvattn", *imported} == set(pages.public_modules())
    assert "api/pyvattn.prefix.md" in pages.api_pages()


def test_what_is_not_verified_is_collected_from_the_pages():
    page = pages.not_verified_page()
    for title in ("pyvattn", "vLLM over rows", "Wheels", "Memory that engines share"):
        assert f"## {title}\n" in page
    assert "](cumem.md#several-gpus)" in page  # README calls it docs/cumem.md


def test_nothing_is_fetched_by_who_builds_or_reads_the_site():
    assert "font: false" in CONFIG
    assert not re.search(r"https?://", CONFIG)


@pytest.mark.parametrize("setting", ["omitted_files", "not_found", "anchors", "absolute_links"])
def test_a_link_that_leads_nowhere_fails_the_build(setting):
    assert re.search(r"^strict: true$", CONFIG, re.MULTILINE)
    assert set(re.findall(rf"{setting}: (\w+)", CONFIG)) == {"warn"}


def test_the_build_is_not_quiet():
    """mkdocs counts only the warnings that it shows."""
    (recipe,) = re.findall(r"^\t.*mkdocs build.*$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert "quiet" not in recipe
    assert "-q" not in recipe.split()
