"""Programs of the system that are called, and what becomes of their failures."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence

from pyvattn.errors import InstallError

# An ordinary user's PATH lacks them, and sudo may reset it.
_SYSTEM_PATHS = ("/usr/local/sbin", "/usr/sbin", "/sbin")


def find_tool(name: str) -> str | None:
    """Return the path of a program, also of one in sbin; None where it is not installed."""
    return shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", ""), *_SYSTEM_PATHS)))


def run_tool(command: Sequence[str]) -> str:
    """Run a program to its end and return what it wrote on stdout.

    Raises:
        InstallError: it is not there, or it failed; with what it wrote on stderr.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise InstallError(f"{command[0]}: cannot be run: {error.strerror}") from error
    if done.returncode != 0:
        reason = (done.stderr or done.stdout).strip() or "it said nothing"
        raise InstallError(f"`{' '.join(command)}` failed with {done.returncode}: {reason}")
    return done.stdout
