"""The list of benches: add one here, and ``pyvattn bench`` has it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Bench:
    """A bench: the module whose ``measure(options)`` yields its measures, and its help line."""

    module: str
    help: str


BENCHES = {
    "core": Bench("pyvattn.bench.core", "Bookkeeping, growth, replay: any machine."),
}
