# SPDX-License-Identifier: Apache-2.0
"""docs/operating.md names every variable, exit code and logger, and every count says what it is."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from pyvattn.cache import Stats
from pyvattn.cli.exits import MEANINGS
from pyvattn.prefix import PrefixStats
from pyvattn.rows import PoolStats

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
SOURCES = [
    path
    for folder in ("pyvattn", "cli", "driver_patch/install")
    for path in sorted((ROOT / folder).rglob("*.py"))
]


def section(title):
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def first_cells(title):
    return set(re.findall(r"^\| `?([\w.]+)`? \|", section(title), re.MULTILINE))


def test_every_environment_variable_is_on_the_page():
    read = set()
    for path in SOURCES:
        read |= set(re.findall(r"[\"'](PYVATTN_[A-Z_]+)[\"']", path.read_text(encoding="utf-8")))
    assert first_cells("Environment variables") - {"variable"} == read


def test_every_exit_code_is_on_the_page():
    rows = re.findall(r"^\| (\d) \| (.*) \|$", section("Exit codes"), re.MULTILINE)
    assert {int(code): text for code, text in rows} == {int(c): t for c, t in MEANINGS.items()}


def test_every_logger_is_on_the_page():
    speaking = set()
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        if "logger_of(__name__)" in text:
            speaking.add(".".join(path.relative_to(ROOT).with_suffix("").parts))
        speaking |= set(re.findall(r"getLogger\(\"(vllm\.\w+)\"\)", text))
    assert first_cells("What it logs") - {"logger"} == speaking


def preemptions():
    pytest.importorskip("torch", reason="the transformers integration needs torch")
    pytest.importorskip("transformers", reason="the transformers integration needs transformers")
    from pyvattn.integrations.transformers import Preemptions

    return Preemptions


def test_every_count_of_preemptions_says_what_it_counts():
    test_every_count_says_what_it_counts(preemptions())


@pytest.mark.parametrize("kind", [Stats, PoolStats, PrefixStats])
def test_every_count_says_what_it_counts(kind):
    said = set(re.findall(r"``(\w+)", kind.__doc__))
    said |= {word for text in re.findall(r"``([^`]+)``", kind.__doc__) for word in text.split()}
    assert {field.name for field in dataclasses.fields(kind)} <= said
