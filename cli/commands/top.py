# SPDX-License-Identifier: Apache-2.0
"""``pyvattn top``: who holds the memory that engines share."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict

import click
from rich.console import Group
from rich.live import Live
from rich.table import Table

from pyvattn.cli.output import console, json_option, print_json, table
from pyvattn.metrics import serve_metrics
from pyvattn.shared import Ledger, Member, read_ledgers
from pyvattn.units import format_size

_COLUMNS = ("member", "pid", "used", "lease", "target", "wanted", "guarantee", "weight", "limit")


@click.command()
@click.option("--once", is_flag=True, help="Show it once and exit.")
@click.option(
    "--interval",
    type=click.FloatRange(0.1, 3600),
    default=1.0,
    show_default=True,
    help="Seconds between two looks.",
)
@click.option(
    "--serve",
    "port",
    type=click.IntRange(0, 65535),
    help="Serve Prometheus metrics at this port instead; 0: one that is free.",
)
@click.option(
    "--address", default="127.0.0.1", show_default=True, help="Where --serve listens.", metavar="IP"
)
@json_option
def command(once: bool, interval: float, port: int | None, address: str, as_json: bool) -> None:
    """Show the ledgers of shared memory: a table for each device, until Ctrl-C.

    ``--json`` prints one look; sizes are in bytes.
    """
    if port is not None:
        server, thread = serve_metrics(port, address)
        click.echo(f"http://{address}:{server.server_port}/metrics")
        thread.join()
    elif as_json:
        print_json([asdict(ledger) for ledger in read_ledgers()])
    elif once:
        console().print(_view())
    else:
        with Live(_view(), console=console(), refresh_per_second=4) as live:
            while True:
                time.sleep(interval)
                live.update(_view())


def _view() -> Group | str:
    ledgers = read_ledgers()
    if not ledgers:
        return "No engine shares memory here: see docs/elastic.md"
    return Group(*(_table(ledger) for ledger in ledgers))


def _table(ledger: Ledger) -> Table:
    parts = [f"{format_size(ledger.free)} of {format_size(ledger.budget)} free"]
    if ledger.cooling:
        parts.append(f"{format_size(ledger.cooling)} of engines that died")
    if ledger.unknown:
        parts.append(f"{format_size(ledger.unknown)} not accounted for")
    return table(f"{ledger.device}: {', '.join(parts)}", _COLUMNS, _rows(ledger))


def _rows(ledger: Ledger) -> Iterator[tuple[str, ...]]:
    for member in ledger.members:
        yield _row(member)


def _row(member: Member) -> tuple[str, ...]:
    if not member.readable:
        return ("(damaged)", "", "", format_size(member.lease), *[""] * 5)
    limit = "" if member.limit is None else format_size(member.limit)
    sizes = (member.used, member.lease, member.target, member.wanted, member.guarantee)
    texts = map(format_size, sizes)
    return (member.name, str(member.pid), *texts, f"{member.weight:g}", limit)
