# SPDX-License-Identifier: MIT OR GPL-2.0
"""scripts/decode_ptes turns the emulated machine's dump into runs of pages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "decode_ptes"

DUMP = """\
[   12.3] something else
vaspace gpu 0 page directory 0x200000 video
pte 0x7f0000000000 0x10000 0x0000000000040001
pte 0x7f0000010000 0x10000 0x0000000000041001
pte 0x7f0000020000 0x10000 0x0000000000042041
pte 0x7f0000200000 0x200000 0x0000000000060085
"""


HOPPER = """\
vaspace gpu 0 version 2 page directory 0x200000 video
pte 0x7f0000000000 0x10000 0x0600000000040001
vaspace gpu 1 version 3 page directory 0x200000 video
pte 0x11800000000000 0x10000 0x0000000000400601
pte 0x11800000010000 0x10000 0x0000000000410601
pte 0x11800000020000 0x10000 0x0000000000420621
pte 0x11800000200000 0x200000 0x0008000000600685
"""


def decoded(dump: str) -> list[str]:
    return subprocess.run(
        [sys.executable, SCRIPT], input=dump, capture_output=True, text=True, check=True
    ).stdout.splitlines()


def test_runs_attributes_and_apertures() -> None:
    assert decoded(DUMP) == [
        "vaspace gpu 0 page directory 0x200000 video",
        "0x7f0000000000-0x7f0000020000      2 x 64K  video 0x400000  read-write",
        "0x7f0000020000-0x7f0000030000      1 x 64K  video 0x420000  read-only",
        "0x7f0000200000-0x7f0000400000      1 x  2M  system 0x600000  no atomics",
    ]


def test_each_vaspace_has_the_format_that_its_line_names() -> None:
    assert decoded(HOPPER) == [
        "vaspace gpu 0 version 2 page directory 0x200000 video",
        "0x7f0000000000-0x7f0000010000      1 x 64K  video 0x400000  kind 0x6",
        "vaspace gpu 1 version 3 page directory 0x200000 video",
        "0x11800000000000-0x11800000020000      2 x 64K  video 0x400000  kind 0x6",
        "0x11800000020000-0x11800000030000      1 x 64K  video 0x420000  read-only, kind 0x6",
        "0x11800000200000-0x11800000400000      1 x  2M  "
        "system 0x8000000600000  no access counters, kind 0x6",
    ]
