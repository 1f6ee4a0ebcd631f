# SPDX-License-Identifier: Apache-2.0
"""Every public name says what it is, stands in an example, and is tested."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

from names import public_methods, public_objects

import pyvattn

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
EXAMPLES = list((ROOT / "examples").glob("*.py"))
# What tries every public name in turn proves nothing of a single one.
TESTS = [path for path in (ROOT / "tests").rglob("*.py") if path.parent.name != "public"]


def _members(kind: type) -> list[tuple[str, Any]]:
    """Methods and properties: what is more than the value of a field."""
    return [
        (name, member)
        for name, member in public_methods(kind)
        if callable(member) or isinstance(member, (property, classmethod, staticmethod))
    ]


def _has_words(it):
    return bool((inspect.getdoc(it) or "").strip())


def test_every_public_name_has_a_docstring():
    missing = []
    for name, it in public_objects().items():
        if isinstance(it, type):
            missing += [] if _has_words(it) else [name]
            missing += [
                f"{name}.{method}"
                for method, member in _members(it)
                if not _has_words(getattr(it, method)) and not _has_words(member)
            ]
        elif inspect.isroutine(it) and not _has_words(it):
            missing.append(name)
    assert not missing


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text))


def _code_of_pages() -> str:
    """What tests/public/test_documents.py runs."""
    return "".join(
        code
        for page in PAGES
        for code in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    )


def _names() -> list[str]:
    """Public objects, and the public members of classes: a caller needs examples of both."""
    found = []
    for name, it in public_objects().items():
        found.append(name)
        if isinstance(it, type):
            found += [f"{name}.{member}" for member, _ in _members(it)]
    return list(dict.fromkeys(found))


def _lacking(names: list[str], words: set[str]) -> list[str]:
    return [name for name in names if name.rpartition(".")[2] not in words]


def test_every_public_name_stands_in_an_example():
    names = _names()
    assert {"pyvattn.KVCache", "pyvattn.KVCache.acquire", "pyvattn.traces.Trace.label"} <= {*names}
    pages = "".join(path.read_text(encoding="utf-8") for path in [*PAGES, *EXAMPLES])
    assert not _lacking(names, _words(pages))


def test_every_public_name_is_tested():
    tested = "".join(path.read_text(encoding="utf-8") for path in TESTS)
    assert not _lacking(_names(), _words(tested + _code_of_pages()))


def test_every_error_has_its_line_on_the_page():
    page = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
    assert not _lacking(list(pyvattn.errors.__all__), _words(page))
