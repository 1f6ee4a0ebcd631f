# SPDX-License-Identifier: Apache-2.0
"""The demo's prompts, from ``prompts.md``: a title line ``# ...``, then the text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True)
class Prompt:
    """What a user asks."""

    title: str
    text: str


def load_prompts() -> list[Prompt]:
    """Return all prompts in the order of the file."""
    whole = files("pyvattn.demo").joinpath("prompts.md").read_text(encoding="utf-8")
    parts = re.split(r"^# ", whole, flags=re.MULTILINE)[1:]
    split = (part.partition("\n") for part in parts)
    return [Prompt(title.strip(), text.strip()) for title, _, text in split]
