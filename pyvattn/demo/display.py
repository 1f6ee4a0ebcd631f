# SPDX-License-Identifier: Apache-2.0
"""The live view of the slots while the demo runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pyvattn.units import format_size

if TYPE_CHECKING:
    from pyvattn.integrations.transformers import Request
    from pyvattn.samples import Sample


class Display:
    """Shows every slot's request; on anything but a terminal, a line for each that is done."""

    def __init__(self, console: Console, titles: Sequence[str], slots: int, static: int) -> None:
        self._console = console
        self._titles = titles
        self._slots = slots
        self._static = static
        self._live: Live | None = None
        self._done: set[int] = set()
        self._steps = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Draw while the block runs."""
        if not self._console.is_terminal:
            yield
            return
        with Live(console=self._console, auto_refresh=False, transient=True) as live:
            self._live = live
            yield

    def watch(self, requests: Sequence[Request], sample: Sample) -> None:
        """Draw the state after a step."""
        self._steps += 1
        if self._live is not None:
            view = Group(self._table(requests), self._footer(requests, sample))
            self._live.update(view, refresh=True)
        else:
            self._print_finished(requests, sample)

    def _table(self, requests: Sequence[Request]) -> Table:
        table = Table(box=None, padding=(0, 1), header_style="dim")
        table.add_column("slot", justify="right")
        table.add_column("request", width=30, no_wrap=True)
        table.add_column("prompt", justify="right")
        table.add_column("new", justify="right", width=4)
        table.add_column("", width=20)
        slots = [request.slot for request in requests]
        live = {int(slot): index for index, slot in enumerate(slots) if slot is not None}
        for slot in range(self._slots):
            if slot not in live:
                table.add_row(str(slot), Text("free", style="dim"), "", "", "")
                continue
            request, new = requests[live[slot]], len(requests[live[slot]].output)
            bar = ProgressBar(total=request.max_new_tokens, completed=new, width=20)
            title = self._titles[live[slot]]
            table.add_row(str(slot), title, str(len(request.prompt)), str(new), bar)
        return table

    def _footer(self, requests: Sequence[Request], sample: Sample) -> Text:
        tokens = sum(len(request.output) for request in requests)
        done = sum(request.done for request in requests)
        waiting = len(requests) - done - sum(request.slot is not None for request in requests)
        return Text(
            f"\nstep {self._steps}   done {done}   waiting {waiting}"
            f"   {tokens / sample.seconds:.0f} tokens/s\n"
            f"mapped {format_size(sample.mapped)}   tokens {format_size(sample.used)}"
            f"   a static cache {format_size(self._static)}",
            style="cyan",
        )

    def _print_finished(self, requests: Sequence[Request], sample: Sample) -> None:
        for index, request in enumerate(requests):
            if not request.done or index in self._done:
                continue
            self._done.add(index)
            self._console.print(
                f"{sample.seconds:6.1f} s  {self._titles[index]}: {len(request.prompt)} + "
                f"{len(request.output)} tokens, {sample.requests} running, "
                f"{format_size(sample.mapped)} mapped",
                highlight=False,
                soft_wrap=True,
            )
