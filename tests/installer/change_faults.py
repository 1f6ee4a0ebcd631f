# SPDX-License-Identifier: Apache-2.0
"""Let the Nth change to files below a root fail, or kill the process just before it.

Python announces such calls to audit hooks before it makes them, whichever of its
modules asks. A hook cannot be removed, so one is installed and switched.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir")

_on_change: Callable[[str], None] | None = None
_root = ""
_installed = False


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if _on_change is None or (event != "open" and event not in _CHANGES):
        return
    if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & _WRITING):
        return
    if str(arguments[0]).startswith(_root):
        _on_change(f"{event} {arguments[0]}")


@contextmanager
def on_change(root: object, number: int, act: Callable[[str], None]) -> Iterator[list[str]]:
    """Call ``act`` before the Nth change (from 1) below ``root``; yields the changes seen."""
    global _on_change, _root, _installed
    if not _installed:
        sys.addaudithook(_hook)
        _installed = True
    seen: list[str] = []

    def count(change: str) -> None:
        seen.append(change)
        if len(seen) == number:
            act(change)

    _on_change, _root = count, str(root)
    try:
        yield seen
    finally:
        _on_change = None


def die(_change: str) -> None:
    """End the process as a power failure would: nothing is cleaned up."""
    os._exit(77)


def fail(change: str) -> None:
    """Let the change fail as on a full disk."""
    raise OSError(28, f"No space left on device ({change})")


if __name__ == "__main__":
    from pathlib import Path

    from acts import install, uninstall

    from driver_patch.install.install import Request
    from driver_patch.install.machine import Machine

    what, root, kernel, built, number = sys.argv[1:]
    with on_change(root, int(number), die):
        if what == "install":
            install(Machine(root, kernel), Request(Path(built)))
        else:
            uninstall(Machine(root, kernel))
