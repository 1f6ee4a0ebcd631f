# SPDX-License-Identifier: Apache-2.0
"""The command ``pyvattn``. Commands load what they need when they run, and not before."""

from __future__ import annotations


def main() -> None:
    """Run the command line; the entry point of the package."""
    from pyvattn.cli.app import run

    run()
