# SPDX-License-Identifier: Apache-2.0
"""Draw every JSON of docs/results/ that a bench wrote, into docs/pictures/results/.

Usage: python scripts/plot_results.py [FILE...]

One bar for each measure, grouped by unit, with its quartiles and its target; of a profile one
for each part of a step, with its limit. Needs matplotlib.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from results_files import RESULTS, ROOT, is_drawn

from pyvattn.plots import plot_measures, plot_profile

PICTURES = ROOT / "docs" / "pictures" / "results"


def main(arguments: list[str]) -> int:
    files = [Path(argument).resolve() for argument in arguments] or sorted(RESULTS.rglob("*.json"))
    for file in files:
        found = json.loads(file.read_text())
        if not is_drawn(found):
            continue
        inside = file.relative_to(RESULTS) if file.is_relative_to(RESULTS) else Path(file.name)
        draw = plot_profile if "profile" in found else plot_measures
        draw(found, (PICTURES / inside).with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
