# SPDX-License-Identifier: MIT OR GPL-2.0
"""What a mutant is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """``edits`` are (old, new) texts of driver_patch/src/``file``; each old occurs exactly once.

    ``tests`` are expected to notice, and run first, in the module built as ``flavour``: as it is
    installed, but where only UVM's own assertions (``checked``) can see what is broken. What only
    one kind of GPU executes names its ``chip``; the others run on the one that is asked for.
    """

    name: str
    file: str
    edits: tuple[tuple[str, str], ...]
    tests: str = ""
    flavour: str = "patched"
    chip: str | None = None
