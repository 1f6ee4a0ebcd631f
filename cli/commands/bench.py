"""``pyvattn bench``: one command for each bench of the registry."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click
from rich.text import Text

from pyvattn.bench.registry import BENCHES
from pyvattn.bench.report import Measure, Report
from pyvattn.cli.exits import Exit
from pyvattn.cli.lazy import LazyCommand, LazyGroup
from pyvattn.cli.output import console, json_option, print_json, progress_console, table


@click.group(
    cls=LazyGroup,
    lazy={
        name: LazyCommand("pyvattn.cli.commands.bench", bench.help, name)
        for name, bench in BENCHES.items()
    },
)
def command() -> None:
    """Measure, compare in the same process, and keep the results as JSON."""


@click.command()
@click.option("--trace", type=click.Path(exists=True, dir_okay=False), help="CSV of requests.")
@click.option("--rounds", type=click.IntRange(min=3), default=31, help="Of each timing [31].")
@click.option("--out", type=click.Path(file_okay=False), help="Folder for core.json.")
@json_option
@click.pass_context
def core(ctx: click.Context, /, out: str | None, as_json: bool, **options: Any) -> None:
    """Measure the core: bookkeeping against a plain block table, growth, replay, its own memory.

    Without --trace the replay runs a SYNTHETIC trace. The exit code is 1 if a
    target is missed.
    """
    run_bench(ctx, "core", options, out, as_json)


def run_bench(
    ctx: click.Context, name: str, options: dict[str, Any], out: str | None, as_json: bool
) -> None:
    """Run a bench, show its measures as they come, keep the report, and exit with its verdict."""
    module = import_module(BENCHES[name].module)
    measures = []
    with progress_console().status(f"bench {name}") as status:
        for found in module.measure(module.Options(**options)):
            measures.append(found)
            status.update(f"bench {name}: {found.name}")
    report = Report(name, measures)
    if as_json:
        print_json(report.as_dict())
    else:
        _print(report)
    if out is not None:
        click.echo(f"Written: {report.write(out)}", err=True)
    if not report.ok:
        ctx.exit(Exit.CHECK_FAILED)


def _print(report: Report) -> None:
    machine = report.machine
    out = console()
    out.print(Text(f"{machine['cpu']}, {machine['cores']} cores, {machine['python']}"))
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
