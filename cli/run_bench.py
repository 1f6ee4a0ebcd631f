# SPDX-License-Identifier: Apache-2.0
"""Runs a bench of the registry for its command, and shows what it measured."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from pyvattn.bench.registry import BENCHES
from pyvattn.bench.report import Measure, Report, Setup
from pyvattn.cli.exits import Exit
from pyvattn.cli.filled import given
from pyvattn.cli.output import console, print_json, progress_console, table


def run_bench(
    ctx: click.Context, name: str, options: dict[str, Any], out: str | None, as_json: bool
) -> None:
    """Run a bench, show its measures as they come, keep the report, and exit with its verdict."""
    module = import_module(BENCHES[name].module)
    if out is not None:
        _make_room_for(out)
    measures: list[Measure] = []
    setups: list[Setup] = []
    with progress_console().status(f"bench {name}") as status:
        for found in module.measure(module.Options(**given(options))):
            if isinstance(found, Setup):
                setups.append(found)
                continue
            measures.append(found)
            status.update(f"bench {name}: {found.name}")
    report = Report(name, measures, setups)
    if as_json:
        print_json(report.as_dict())
    else:
        _print(report)
    if out is not None:
        click.echo(f"Written: {report.write(out)}", err=True)
    if not report.ok:
        ctx.exit(Exit.CHECK_FAILED)


def _make_room_for(out: str) -> None:
    """Create the folder of the results now: a bench may take long, and must not be lost."""
    folder = Path(out).parent if out.endswith(".json") else Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))


def _print(report: Report) -> None:
    machine = report.machine
    out = console()
    gpus = machine.get("gpus", [])
    device = f", {gpus[0]}" if isinstance(gpus, list) and gpus else ""
    where = f"{machine['cpu']}, {machine['cores']} cores{device}, {machine['python']}"
    out.print(Text(where))
    columns = ("measure", "median", "quartiles", "<unit", "<target", "<note")
    out.print(table(f"bench {report.bench}", columns, _rows(report.measures)))


def _rows(measures: Sequence[Measure]) -> list[tuple[str, ...]]:
    return [
        (
            found.name,
            _number(found.value),
            "" if found.low is None else f"{_number(found.low)} - {_number(found.high)}",
            found.unit,
            _target(found),
            found.note,
        )
        for found in measures
    ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _target(found: Measure) -> str:
    if found.ok is None:
        return ""
    wanted = [
        f"{sign} {bound:g}"
        for sign, bound in ((">=", found.at_least), ("<=", found.at_most))
        if bound is not None
    ]
    return f"{' '.join(wanted)}: {'met' if found.ok else 'MISSED'}"
