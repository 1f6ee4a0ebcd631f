# SPDX-License-Identifier: Apache-2.0
"""Where results lie, and how pages under docs/ refer to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"


# Where there are more measures, only a table helps.
_MOST_DRAWN = 80


def is_drawn(found: dict[str, Any]) -> bool:
    """Whether there is a picture of what a bench wrote."""
    return 0 < len(found.get("measures", ())) <= _MOST_DRAWN


def source(found: dict[str, Any], name: str) -> str:
    machine = found["machine"]
    gpus = ", ".join(machine.get("gpus", [])) or "no GPU"
    if "nvidia_driver" in machine:
        gpus += f", driver {machine['nvidia_driver']}"
    return (
        f"`{found['command']}`, {found['date'][:10]}, {machine['cpu']}, {machine['cores']} cores, "
        f"{gpus} ([JSON](results/{name}))"
    )


def number(value: float) -> str:
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
