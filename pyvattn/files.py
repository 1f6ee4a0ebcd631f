# SPDX-License-Identifier: Apache-2.0
"""Reading and writing files that users name, which may be anything: a pipe, a device, a folder."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterable
from contextlib import suppress
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


def write_whole(path: Path, parts: Iterable[str]) -> None:
    """Write a file whole or not at all, in place of what is there.

    Any number of processes may write and read it at once: readers find one writer's file, whole.
    Raises ``OSError``, also where something else than an ordinary file has the name.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is no ordinary file")
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with draft.open("x", encoding="utf-8") as file:
            file.writelines(parts)
        draft.replace(path)
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
