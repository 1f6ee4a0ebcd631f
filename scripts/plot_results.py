"""Draw every JSON of docs/results/ that a bench wrote, into docs/pictures/results/.

Usage: python scripts/plot_results.py [FILE...]

One bar for each measure, grouped by unit, with its quartiles and its target. Needs
matplotlib.
"""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
PICTURES = ROOT / "docs" / "pictures" / "results"
MOST = 80
MET, MISSED, PLAIN = "#2a9d4e", "#c8372d", "#4472a8"


def draw(found: dict[str, Any], path: Path) -> None:
    units: dict[str, list[dict[str, Any]]] = {}
    for measure in found["measures"]:
        units.setdefault(measure["unit"], []).append(measure)
    rows = [len(measures) for measures in units.values()]
    figure = Figure(figsize=(11, 1.6 + 0.27 * sum(rows) + 0.6 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(units), 1, height_ratios=rows, squeeze=False)[:, 0]
    for panel, (unit, measures) in zip(panels, units.items(), strict=True):
        draw_unit(panel, unit, measures)
    machine = found["machine"]
    where = ", ".join(machine.get("gpus") or [f"{machine['cpu']}, {machine['cores']} cores"])
    command = textwrap.fill(found["command"], 120, break_on_hyphens=False)
    figure.suptitle(f"{command}\n{where}, {found['date'][:10]}", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def draw_unit(panel: Any, unit: str, measures: list[dict[str, Any]]) -> None:
    values = [measure["value"] for measure in measures]
    colours = [{True: MET, False: MISSED, None: PLAIN}[measure["ok"]] for measure in measures]
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
    panel.set_xlabel(f"{unit} (dotted: target)" if set(colours) != {PLAIN} else unit, fontsize=9)
    positive = [value for value in values if value > 0]
    if positive and max(positive) > 50 * min(positive):
        panel.set_xscale("log")
    panel.margins(x=0.12, y=0.01)
    panel.invert_yaxis()


def main(arguments: list[str]) -> int:
    files = [Path(argument).resolve() for argument in arguments] or sorted(RESULTS.rglob("*.json"))
    for file in files:
        found = json.loads(file.read_text())
        # Where there is this much, only a table helps.
        if not 0 < len(found.get("measures", ())) <= MOST:
            continue
        inside = file.relative_to(RESULTS) if file.is_relative_to(RESULTS) else Path(file.name)
        draw(found, (PICTURES / inside).with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
