# SPDX-License-Identifier: Apache-2.0
"""Prints what the demo generated and what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from pyvattn.samples import BLOCK_TOKENS
from pyvattn.units import format_page_size, format_size

if TYPE_CHECKING:
    from pyvattn.demo.result import Answer, DemoResult


def print_answers(console: Console, answers: Sequence[Answer]) -> None:
    """Print the generated text under each prompt's title."""
    note = "What the model wrote (135 million parameters: expect fluency, not facts)"
    console.print(Text(note, style="italic"), end="\n\n")
    for answer in answers:
        console.print(Text(answer.title, style="bold"))
        console.print(Padding(Text(answer.text), (0, 0, 1, 2)))


def print_tables(console: Console, result: DemoResult) -> None:
    """Print memory, driver calls and times."""
    console.print(_memory(result))
    console.print(_work(result))


def _memory(result: DemoResult) -> Table:
    table = Table(title="KV cache memory", title_justify="left")
    table.add_column("")
    table.add_column("bytes", justify="right")
    table.add_column("of static", justify="right")
    table.add_column("", style="dim")
    rows = (
        ("reserved", result.cache.reserved, "addresses: no memory"),
        ("mapped, at most", result.mapped_peak, "all it ever took"),
        ("  for live requests", result.live_peak, "the rest is kept for the next"),
        ("  for their tokens", result.used_peak, "K and V alone"),
        ("static cache", result.static, f"{result.slots} rows of {result.longest} tokens"),
        ("paged cache, at most", result.paged_peak, f"blocks of {BLOCK_TOKENS} tokens"),
    )
    for name, size, note in rows:
        share = "" if size > 2 * result.static else f"{size / result.static:.0%}"
        table.add_row(name, format_size(size), share, note)
    return table


def _work(result: DemoResult) -> Table:
    cache = result.cache
    blocking, hidden = cache.map_seconds_blocking, cache.map_seconds_hidden
    total = blocking + hidden
    rows = (
        ("driver", cache.driver),
        ("page size", format_page_size(cache.page_size)),
        ("layout", cache.layout),
        ("map calls", f"{cache.map_calls}"),
        ("unmap calls", f"{cache.unmap_calls}"),
        ("time spent mapping", f"{total * 1e3:.1f} ms"),
        ("of it hidden behind the model", f"{hidden / total:.0%}" if total else "nothing to hide"),
        ("of it the model waited for", f"{blocking * 1e3:.2f} ms"),
        ("tokens generated", f"{result.new_tokens} in {result.steps} steps"),
        ("tokens/s, prompts included", f"{result.new_tokens / result.serve_seconds:.1f}"),
        ("time to load, serve, check", _times(result)),
    )
    table = Table(title="Work", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def _times(result: DemoResult) -> str:
    check = "-" if result.check_seconds is None else f"{result.check_seconds:.1f} s"
    return f"{result.load_seconds:.1f} s, {result.serve_seconds:.1f} s, {check}"


def print_verdict(console: Console, result: DemoResult) -> None:
    """Say that the self-check passed."""
    console.print(
        f"Self-check passed: all {len(result.answers)} prompts got the same "
        f"{result.new_tokens} tokens as from the model's own cache (transformers' DynamicCache).",
        style="bold green",
        highlight=False,
        soft_wrap=True,
    )
