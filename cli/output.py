# SPDX-License-Identifier: Apache-2.0
"""How results are shown: tables for people on stdout, JSON for programs, progress on stderr."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.table import Table

_Command = TypeVar("_Command", bound=Callable[..., Any])


def json_option(command: _Command) -> _Command:
    """Add ``--json`` to a command."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")(
        command
    )


def print_json(value: object) -> None:
    """Print ``value`` as JSON on stdout."""
    click.echo(json.dumps(value, indent=2, default=str))


def console() -> Console:
    """Return the console for results. Where stdout is no terminal, tables keep their width."""
    out = Console(highlight=False)
    return out if out.is_terminal else Console(highlight=False, width=max(out.width, 120))


def progress_console() -> Console:
    """Return the console for progress bars and notes."""
    return Console(stderr=True, highlight=False)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Return a table whose columns after the first are aligned to the right.

    A column name that begins with ``<`` is aligned to the left instead.
    """
    result = Table(title=title, title_justify="left", title_style="bold")
    for index, name in enumerate(columns):
        left = index == 0 or name.startswith("<")
        result.add_column(
            name.removeprefix("<"), justify="left" if left else "right", no_wrap=not left
        )
    for row in rows:
        result.add_row(*row)
    return result
