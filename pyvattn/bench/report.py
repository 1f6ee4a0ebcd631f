# SPDX-License-Identifier: Apache-2.0
"""Results: measures with their targets, and the file they are kept in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path

from pyvattn.arguments import check_path, check_type, is_number
from pyvattn.bench.timing import Timing
from pyvattn.errors import ConfigError
from pyvattn.machine import describe_machine, describe_run
from pyvattn.text import shown


@dataclass(frozen=True)
class Measure:
    """One figure. ``low`` and ``high`` are quartiles where it was repeated.

    ``at_least`` and ``at_most`` are the target, if there is one; ``note`` says
    how the figure was got.
    """

    name: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    rounds: int = 1
    at_least: float | None = None
    at_most: float | None = None
    note: str = ""

    @property
    def ok(self) -> bool | None:
        """Whether the target is met; None without a target."""
        if self.at_least is None and self.at_most is None:
            return None
        above = self.at_least is None or self.value >= self.at_least
        return above and (self.at_most is None or self.value <= self.at_most)

    @classmethod
    def of(
        cls,
        name: str,
        timing: Timing,
        unit: str,
        *,
        scale: float = 1.0,
        at_least: float | None = None,
        at_most: float | None = None,
        note: str = "",
    ) -> Measure:
        """Return the measure of a timing, times ``scale``."""
        check_type("timing", timing, Timing)
        if not is_number(scale):
            raise ConfigError(f"scale={shown(scale)}: use a number")
        return cls(
            name,
            timing.median * scale,
            unit,
            timing.low * scale,
            timing.high * scale,
            timing.rounds,
            at_least,
            at_most,
            note,
        )


@dataclass(frozen=True)
class Setup:
    """What was measured, where a name does not say enough: its settings and releases, for JSON."""

    name: str
    values: Mapping[str, object]


@dataclass(frozen=True)
class Report:
    """All measures of one bench, with what is needed to judge and repeat them."""

    bench: str
    measures: Sequence[Measure]
    setups: Sequence[Setup] = ()
    run: dict[str, object] = field(default_factory=describe_run)
    machine: dict[str, object] = field(default_factory=describe_machine)

    @property
    def ok(self) -> bool:
        """Whether no target was missed."""
        return all(measure.ok is not False for measure in self.measures)

    def as_dict(self) -> dict[str, object]:
        """Return everything for JSON."""
        return {
            "bench": self.bench,
            **self.run,
            "machine": self.machine,
            **{setup.name: setup.values for setup in self.setups},
            "measures": [{**asdict(measure), "ok": measure.ok} for measure in self.measures],
        }

    def write(self, where: str | PathLike[str]) -> Path:
        """Write the JSON file ``where``, or ``<bench>.json`` in that folder; return its path."""
        path = check_path("where", where)
        if path.suffix != ".json":
            path /= f"{self.bench}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.as_dict(), indent=1) + "\n", encoding="utf-8")
        return path
