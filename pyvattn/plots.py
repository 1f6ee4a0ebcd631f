# SPDX-License-Identifier: Apache-2.0
"""Pictures of results, as PNG: memory over time, waste, and the measures of a bench."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from pyvattn.errors import MissingDependency

if TYPE_CHECKING:
    from pyvattn.demo.result import DemoResult
    from pyvattn.replay.result import Result
    from pyvattn.samples import Sample

    Target = str | PathLike[str]

_MIB, _GIB = 1 << 20, 1 << 30
_POINTS = 150
_INK, _MUTED, _MAPPED, _PAGED = "#1f2933", "#7b8794", "#1f6fb2", "#c2571a"
_USED, _KEPT = "#a9cbe8", "#e6ebf0"
_MET, _MISSED, _PLAIN = "#2a9d4e", "#c8372d", "#4472a8"


def plot_replay(title: str, results: Sequence[Result], path: Target) -> None:
    """Draw what live requests hold in each result, and the waste of each.

    This and the other functions raise :class:`~pyvattn.errors.MissingDependency`
    without matplotlib.
    """
    figure = _figure(10, 7)
    over_time, waste = figure.subplots(2, 1, height_ratios=(3, 2))
    for result in results:
        over_time.plot(*_smooth(result.samples), label=result.label, linewidth=1.2)
    over_time.set(title=title, xlabel="simulated seconds", ylabel="GiB held by live requests")
    # What is far slower than the rest would leave the rest no room.
    over_time.set_xlim(0, 1.05 * median(result.seconds for result in results))
    over_time.set_ylim(0)
    over_time.legend(fontsize="small", ncols=2)
    bars = waste.barh(
        [result.label for result in results], [result.waste_tokens for result in results]
    )
    labels = [f"{r.waste_tokens:,.1f} tokens, {r.waste_bytes / 1e6:,.1f} MB" for r in results]
    waste.bar_label(bars, labels, padding=4, fontsize="small")
    waste.set(xlabel="tokens wasted for each live request, mean", xscale="symlog")
    waste.margins(x=0.3)
    waste.invert_yaxis()
    _save(figure, path, dpi=120)


def plot_demo(result: DemoResult, path: Target) -> None:
    """Draw what was mapped and used against static and paged caches."""
    figure = _figure(9, 5)
    axes = figure.subplots()
    seconds = [sample.seconds for sample in result.samples]
    held, mapped, used, paged = (
        [getattr(sample, name) / _MIB for sample in result.samples]
        for name in ("held", "mapped", "used", "paged")
    )
    static = result.static / _MIB
    label = f"static cache, {result.slots} rows of {result.longest} tokens"
    axes.axhline(static, color=_MUTED, linestyle="--", linewidth=1.5, label=label)
    # A step maps first and computes then: its value holds from the end of the one before.
    line: dict[str, Any] = {"drawstyle": "steps-pre"}
    area: dict[str, Any] = {"step": "pre", "linewidth": 0}
    axes.plot(seconds, held, color=_MAPPED, linewidth=2, label="mapped for live requests", **line)
    axes.plot(seconds, paged, color=_PAGED, linewidth=1.2, label="16-token paged cache", **line)
    axes.fill_between(seconds, used, color=_USED, label="the tokens themselves", **area)
    axes.fill_between(seconds, held, mapped, color=_KEPT, label="kept for the next", **area)
    limits = {"xlim": (0, max(seconds)), "ylim": (0, static * 1.28)}
    axes.set(xlabel="seconds", ylabel="MiB of KV cache", **limits)
    title = f"{len(result.answers)} requests over {result.slots} slots: KV memory over time"
    axes.set_title(title, loc="left", color=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    axes.legend(loc="upper right", ncols=2, frameon=False)
    _save(figure, path, dpi=150)


def plot_measures(found: Mapping[str, Any], path: Target) -> None:
    """Draw the JSON that a bench wrote: a bar for each measure, with quartiles and target."""
    units: dict[str, list[dict[str, Any]]] = {}
    for measure in found["measures"]:
        units.setdefault(measure["unit"], []).append(measure)
    rows = [len(measures) for measures in units.values()]
    figure = _figure(11, 1.6 + 0.27 * sum(rows) + 0.6 * len(rows))
    panels = figure.subplots(len(units), 1, height_ratios=rows, squeeze=False)[:, 0]
    for panel, (unit, measures) in zip(panels, units.items(), strict=True):
        _draw_unit(panel, unit, measures)
    figure.suptitle(_origin(found), fontsize=10)
    _save(figure, path, dpi=110)


def plot_profile(found: Mapping[str, Any], path: Target) -> None:
    """Draw the JSON of ``bench transformers --profile``: a step's parts, and their limits.

    A panel for each kind of step; the dark part of a bar is the least that the part can take.
    """
    phases = found["profile"]["phases"]
    figure = _figure(10, 1 + 2.9 * len(phases))
    panels = figure.subplots(len(phases), 1, squeeze=False)[:, 0]
    for panel, (name, parts) in zip(panels, phases.items(), strict=True):
        places = range(len(parts))
        spent = [1e3 * part["seconds"] for part in parts.values()]
        least = [1e3 * part.get("least_seconds", 0.0) for part in parts.values()]
        panel.barh(places, spent, color=_USED, height=0.7, label="measured")
        panel.barh(places, least, color=_MAPPED, height=0.3, label="least: bytes, operations")
        texts = [
            f"  {milliseconds:.3g} ms, {part['share']:.0%}"
            for milliseconds, part in zip(spent, parts.values(), strict=True)
        ]
        for place, end, text in zip(places, map(max, spent, least), texts, strict=True):
            panel.annotate(text, (end, place), va="center", fontsize=8)
        panel.set_yticks(places, list(parts), fontsize=8)
        panel.set_title(f"{name}: {sum(spent):.3g} ms", loc="left", fontsize=10, color=_INK)
        panel.set_xlabel("ms", fontsize=8)
        panel.margins(x=0.15)
        panel.invert_yaxis()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.suptitle(_origin(found), fontsize=10)
    _save(figure, path, dpi=110)


def _origin(found: Mapping[str, Any]) -> str:
    """Return the command that made a result, and the machine and the day."""
    machine = found["machine"]
    where = ", ".join(machine.get("gpus") or [f"{machine['cpu']}, {machine['cores']} cores"])
    command = textwrap.fill(found["command"], 120, break_on_hyphens=False)
    return f"{command}\n{where}, {found['date'][:10]}"


def _draw_unit(panel: Any, unit: str, measures: list[dict[str, Any]]) -> None:
    values = [measure["value"] for measure in measures]
    colours = [{True: _MET, False: _MISSED, None: _PLAIN}[measure["ok"]] for measure in measures]
    places = range(len(measures))
    panel.barh(places, values, color=colours, height=0.7)
    for place, measure in zip(places, measures, strict=True):
        end = measure["value"]
        if measure["low"] is not None:
            panel.plot([measure["low"], measure["high"]], [place, place], color="black", lw=1)
            end = max(end, measure["high"])
        label = {"xytext": (6, 0), "textcoords": "offset points", "va": "center", "fontsize": 8,
                 "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 0.5}}  # fmt: skip
        panel.annotate(f"{measure['value']:.4g}", (end, place), **label)
        for bound in (measure["at_least"], measure["at_most"]):
            if bound is not None:
                panel.plot([bound, bound], [place - 0.45, place + 0.45], color="black", ls=":")
    panel.set_yticks(places, [measure["name"] for measure in measures], fontsize=8)
    panel.set_xlabel(f"{unit} (dotted: target)" if set(colours) != {_PLAIN} else unit, fontsize=9)
    positive = [value for value in values if value > 0]
    if positive and max(positive) > 50 * min(positive):
        panel.set_xscale("log")
    panel.margins(x=0.12, y=0.01)
    panel.invert_yaxis()


def _smooth(samples: Sequence[Sample]) -> tuple[list[float], list[float]]:
    """Return times and GiB held, each a mean over neighbouring samples."""
    size = max(1, len(samples) // _POINTS)
    groups = [samples[i : i + size] for i in range(0, len(samples), size)]
    times = [fmean(sample.seconds for sample in group) for group in groups]
    return times, [fmean(sample.held for sample in group) / _GIB for group in groups]


def _figure(width: float, height: float) -> Any:
    """Return a figure of so many inches that no window shows."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependency(
            "plots need matplotlib: pip install 'pyvattn[plot]', or leave the plot out"
        ) from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: Target, dpi: int) -> None:
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=dpi)
