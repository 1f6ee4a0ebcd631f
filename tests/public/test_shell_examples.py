# SPDX-License-Identifier: Apache-2.0
"""What the pages tell people to type are commands, options and make targets that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from pyvattn.cli.app import cli

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"```(?:sh|bash|console|shell)\n(.*?)```", re.DOTALL)


def commands():
    for page in PAGES:
        for block in BLOCK.findall(page.read_text(encoding="utf-8")):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line.removeprefix("$ "), comments=True)
                if words and words[0] in ("pyvattn", "make"):
                    yield pytest.param(words, id=f"{page.name}: {' '.join(words)}"[:100])


def check(command, words):
    """Look up subcommands and options; what an option's value means is not asked."""
    context = click.Context(command, info_name=words[0])
    _, rest, _ = command.make_parser(context).parse_args(words[1:])
    if isinstance(command, click.Group):
        inner = command.get_command(context, rest[0])
        assert inner is not None, f"there is no {rest[0]!r}"
        check(inner, rest)


@pytest.mark.parametrize("words", list(commands()))
def test_what_a_page_says_to_type_exists(words):
    if words[0] == "pyvattn":
        check(cli, words)
        return
    makefiles = [ROOT / "Makefile", *(ROOT / "driver_patch").rglob("*.mk")]
    rules = "\n".join(path.read_text(encoding="utf-8") for path in makefiles)
    for target in words[1:]:
        if "=" not in target:
            assert re.search(rf"^[\w -]*\b{re.escape(target)}\b[\w -]*:", rules, re.MULTILINE)


def test_a_wrong_option_or_command_is_found():
    with pytest.raises(click.NoSuchOption):
        check(cli, ["pyvattn", "plan", "--no-such-option"])
    with pytest.raises(AssertionError, match="no-such"):
        check(cli, ["pyvattn", "bench", "no-such"])
