# SPDX-License-Identifier: Apache-2.0
"""``pyvattn ledger``: the file that says who holds the memory that is shared."""

from __future__ import annotations

import click

from pyvattn.cli.sizes import size_option
from pyvattn.shared import create_ledger, reset_ledger

_device = click.option("--device", default="cuda", show_default=True, help="cuda, cuda:1 … or cpu.")


@click.group()
def command() -> None:
    """Make or remove the ledger of a device. Engines make it by themselves where they can."""


@command.command()
@_device
@size_option("--budget", required=True, help="What all engines together may hold, such as 60GiB.")
def create(device: str, budget: int) -> None:
    """Make the ledger before the first engine does, with this budget."""
    click.echo(create_ledger(device, budget=budget))


@command.command()
@_device
def reset(device: str) -> None:
    """Remove the ledger, whatever the file holds. Refused while an engine uses it."""
    click.echo(f"removed {reset_ledger(device)}")
