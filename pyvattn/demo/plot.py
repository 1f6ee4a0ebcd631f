"""The picture of memory over time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyvattn.demo.result import DemoResult

_MIB = 1 << 20
_INK, _MUTED, _MAPPED, _PAGED = "#1f2933", "#7b8794", "#1f6fb2", "#c2571a"
_USED, _KEPT = "#a9cbe8", "#e6ebf0"


def save_plot(result: DemoResult, path: Path) -> None:
    """Draw what was mapped and used against static and paged caches, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), dpi=150, layout="constrained")
    axes = figure.subplots()
    seconds = [sample.seconds for sample in result.samples]
    mapped = [sample.mapped / _MIB for sample in result.samples]
    live = [sample.live / _MIB for sample in result.samples]
    used = [sample.used / _MIB for sample in result.samples]
    paged = [sample.paged / _MIB for sample in result.samples]
    static = result.static / _MIB

    label = f"static cache, {result.slots} rows of {result.longest} tokens"
    axes.axhline(static, color=_MUTED, linestyle="--", linewidth=1.5, label=label)
    # A step maps first and computes then: its value holds from the end of the one before.
    line: dict[str, Any] = {"drawstyle": "steps-pre"}
    area: dict[str, Any] = {"step": "pre", "linewidth": 0}
    axes.plot(seconds, live, color=_MAPPED, linewidth=2, label="mapped for live requests", **line)
    axes.plot(seconds, paged, color=_PAGED, linewidth=1.2, label="16-token paged cache", **line)
    axes.fill_between(seconds, used, color=_USED, label="the tokens themselves", **area)
    axes.fill_between(seconds, live, mapped, color=_KEPT, label="kept for the next", **area)
    axes.set(
        xlabel="seconds",
        ylabel="MiB of KV cache",
        xlim=(0, max(seconds)),
        ylim=(0, static * 1.28),
    )
    axes.set_title(
        f"{len(result.answers)} requests over {result.slots} slots: KV memory over time",
        loc="left",
        color=_INK,
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    axes.legend(loc="upper right", ncols=2, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
