# SPDX-License-Identifier: Apache-2.0
"""What an index of prefixes knows of the slots of its cache."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from pyvattn._native import Slot


@dataclass
class Row:
    """What is known of a slot: the digest of each block that is finished, in order."""

    salt: bytes
    digests: list[bytes] = field(default_factory=list)
    # Blocks that other rows have got from it, or it from others.
    shared: int = 0

    # --- where layers have windows or states ---

    # Finished tokens behind the last whole block.
    tail: list[int] = field(default_factory=list)
    # Numbers of blocks behind which a later prompt may go on: what is there is to be kept.
    ends: set[int] = field(default_factory=set)
    # What keeps them, and whether the row is one of those, which nobody writes to.
    marks: list[Slot] = field(default_factory=list)
    is_mark: bool = False


class Source(NamedTuple):
    """Slots that begin like a prompt: with these blocks, ``hit`` tokens in all."""

    slots: list[Slot]
    digests: list[bytes]
    hit: int
