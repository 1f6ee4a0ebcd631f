# SPDX-License-Identifier: Apache-2.0
"""Reading files that users name, which may be anything: a pipe, a device, a folder."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from pyvattn.units import format_size


def read_text(path: Path, most_bytes: int) -> str:
    """Return the text of an ordinary file of at most ``most_bytes``, without a byte order mark.

    A pipe would have us wait for ever, a device has no end. Raises ``OSError``, and
    ``ValueError`` for anything else than such a file.
    """
    # Without O_NONBLOCK, opening a pipe would wait already.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("it is no ordinary file")
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise ValueError(f"it is larger than {format_size(most_bytes)}")
    # Editors on Windows put the mark in front.
    return content.decode("utf-8-sig")
