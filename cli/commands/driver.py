# SPDX-License-Identifier: Apache-2.0
"""``pyvattn driver``: hands its arguments to the installer of the patched nvidia-uvm."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from pyvattn.errors import DriverUnavailable

_INSTALLER = Path("driver_patch/install/pyvattn-driver")


@click.command(
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(arguments: tuple[str, ...]) -> None:
    """Look at, build, install and remove the patched nvidia-uvm."""
    # It takes this process's place: an interrupt must reach it and nothing else.
    os.execv(sys.executable, [sys.executable, "-I", str(find_installer()), *arguments])


def find_installer() -> Path:
    """Return the installer, which lies beside the package in a checkout and in it in a wheel.

    Raises:
        DriverUnavailable: this installation of pyvattn came without it.
    """
    home = Path(__file__).resolve().parents[2]
    if not (home / _INSTALLER).is_file():
        raise DriverUnavailable(
            f"{home}: this installation of pyvattn lacks the kernel patch and its installer "
            f"({_INSTALLER}): install pyvattn from its wheel, or run this in a checkout of it."
        )
    return home / _INSTALLER
