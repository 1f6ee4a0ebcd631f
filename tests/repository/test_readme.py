# SPDX-License-Identifier: Apache-2.0
"""README and the pages say what docs/results/ says, and their links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_tables_are_what_the_results_say():
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "update_results.py", "--check"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))])
def test_links_lead_to_what_is_there(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), target


def test_what_the_first_screen_shows_stands_in_its_order():
    titles = re.findall(r"^## (.*)$", README, re.MULTILINE)
    assert titles[:5] == [
        "Install",
        "Use it",
        "How fast it is",
        "What it does not do yet",
        "Drivers",
    ]
    assert "<!-- results: front -->" in README
