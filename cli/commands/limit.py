# SPDX-License-Identifier: Apache-2.0
"""``pyvattn limit``: what one engine may hold of the memory that is shared."""

from __future__ import annotations

import click

from pyvattn.shared import limit_member
from pyvattn.units import format_size


@click.command()
@click.argument("member")
@click.argument("size")
def command(member: str, size: str) -> None:
    """Let MEMBER, a name or a process id of `pyvattn top`, hold at most SIZE, or "none".

    What it holds beyond that goes back as soon as it can be spared. The limit ends with the
    process.
    """
    found = limit_member(member, None if size == "none" else size)
    said = "has no limit" if size == "none" else f"may hold {size}"
    click.echo(f"{found.name} ({found.pid}) {said}; it has leased {format_size(found.lease)}")
