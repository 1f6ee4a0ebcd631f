# SPDX-License-Identifier: Apache-2.0
"""``pyvattn replay --calls``: calls of a driver, made again from a file."""

from __future__ import annotations

from dataclasses import asdict

from rich.text import Text

from pyvattn.calls import CallCount, read_calls, replay_calls
from pyvattn.cli.output import console, print_json, table
from pyvattn.units import format_page_size, format_size


def show_calls(path: str, driver: str, as_json: bool) -> None:
    """Make the calls of a file on ``driver``, and show what they took."""
    trace = read_calls(path)
    counts = replay_calls(trace, driver)
    if as_json:
        recorded = {"driver": trace.driver, "page_size": trace.page_size}
        print_json({"recorded": recorded, "driver": driver, "calls": [asdict(c) for c in counts]})
        return
    out = console()
    pages = format_page_size(trace.page_size)
    out.print(Text(f"Calls of {trace.driver}, pages of {pages}, made again on {driver}."))
    columns = ("call", "calls", "entries", "bytes", "us a call", "had failed")
    out.print(table("Driver calls", columns, [_row(count) for count in counts]))
    for count in counts:
        if count.failed:
            out.print(Text(f"{count.operation} had failed, at last with: {count.last_failure}"))


def _row(count: CallCount) -> tuple[str, ...]:
    each = f"{count.seconds / count.calls * 1e6:.1f}" if count.calls else ""
    return (
        count.operation,
        str(count.calls),
        str(count.entries),
        format_size(count.bytes),
        each,
        str(count.failed),
    )
