# SPDX-License-Identifier: Apache-2.0
"""The top-level group: the table of commands, and what becomes of errors."""

from __future__ import annotations

import sys

import click

from pyvattn.cli.exits import MEANINGS, exit_code
from pyvattn.cli.lazy import LazyCommand, LazyGroup
from pyvattn.errors import Error

# One row for each command, in the order in which help shows them.
COMMANDS = {
    "info": LazyCommand("pyvattn.cli.commands.info", "Show drivers, page sizes and versions."),
    "plan": LazyCommand("pyvattn.cli.commands.plan", "Choose page size and layout for a model."),
    "calibrate": LazyCommand(
        "pyvattn.cli.commands.calibrate", "Measure what driver calls cost on this machine."
    ),
    "demo": LazyCommand("pyvattn.cli.commands.demo", "Serve a small model and check its output."),
    "replay": LazyCommand("pyvattn.cli.commands.replay", "Run a request trace through the cache."),
    "bench": LazyCommand("pyvattn.cli.commands.bench", "Measure, and keep the results as JSON."),
    "top": LazyCommand("pyvattn.cli.commands.top", "Show who holds the memory that is shared."),
    "limit": LazyCommand("pyvattn.cli.commands.limit", "Limit what one engine may hold of it."),
    "ledger": LazyCommand("pyvattn.cli.commands.ledger", "Make or remove the ledger of it."),
    "driver": LazyCommand("pyvattn.cli.commands.driver", "Install the patched kernel module."),
}


def _version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if not wanted or ctx.resilient_parsing:
        return
    from importlib.metadata import version

    click.echo(f"pyvattn {version('pyvattn')}")
    ctx.exit()


_EPILOG = "Exit codes: " + "; ".join(f"{code:d} {text}" for code, text in MEANINGS.items()) + "."


@click.group(
    cls=LazyGroup,
    lazy=COMMANDS,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_version,
    help="Show the version and exit.",
)
def cli() -> None:
    """A KV cache that is contiguous in virtual memory and paged in physical memory."""


def run() -> None:
    """Run the command line and exit with the code that fits."""
    try:
        cli.main(prog_name="pyvattn")
    except (Error, OSError) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(exit_code(error))
