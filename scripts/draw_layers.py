# SPDX-License-Identifier: Apache-2.0
"""Draw docs/pictures/layers.svg: the layers, and who talks to whom.

Usage: python3 scripts/draw_layers.py [OUTPUT]
"""

from __future__ import annotations

import sys
from pathlib import Path
from xml.sax.saxutils import escape

WIDTH = 860
LAYERS = [
    ("cli/", "pyvattn info, plan, demo, replay, bench, driver", "#e8eef7"),
    (
        "pyvattn/",
        "KVCache · planner · detection · attention adapters · engine integrations",
        "#dbe7f5",
    ),
    (
        "uvm_ext/cache + python",
        "slots and arenas · growth (one transaction) · page pool (runs) · mapper thread · DLPack",
        "#cfe0f2",
    ),
    (
        "uvm_ext/adaptors",
        "serialized · statistics · limit · and for tests: checked · faults · trace",
        "#f3ead3",
    ),
    ("uvm_ext/drivers", "one small interface, one file for each driver", "#f6e2c3"),
    (
        "operating system",
        "memfd + mmap · libcuda (dlopen) · /dev/nvidiactl, /dev/nvidia-uvm",
        "#e9e9e9",
    ),
    ("driver_patch/", "nvidia-uvm.ko with our ioctls; uapi/ is the one shared header", "#e2efda"),
]
DRIVERS = ["host", "cumem", "stock-uvm", "patched"]
ROW, GAP, TOP, LEFT = 62, 16, 20, 20


def text(x: float, y: float, content: str, size: int, *, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x}" y="{y}" font-size="{size}"{weight}>{escape(content)}</text>'


def box(x: float, y: float, width: float, height: float, fill: str) -> str:
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" fill="{fill}" '
        'stroke="#555"/>'
    )


def arrow(y: float) -> str:
    x = WIDTH / 2
    return f'<path d="M{x} {y} v{GAP - 5} m-4 -4 l4 5 l4 -5" stroke="#555" fill="none"/>'


def draw() -> str:
    parts = []
    y = TOP
    for index, (name, what, fill) in enumerate(LAYERS):
        parts.append(box(LEFT, y, WIDTH - 2 * LEFT, ROW, fill))
        parts.append(text(LEFT + 14, y + 25, name, 17, bold=True))
        parts.append(text(LEFT + 14, y + 47, what, 14))
        if name == "uvm_ext/drivers":
            for i, driver in enumerate(DRIVERS):
                x = WIDTH - LEFT - 14 - (len(DRIVERS) - i) * 98
                parts.append(box(x, y + 14, 88, 34, "#ffffff"))
                parts.append(text(x + 9, y + 36, driver, 14))
        if index + 1 < len(LAYERS):
            parts.append(arrow(y + ROW))
        y += ROW + GAP
    height = y - GAP + TOP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" font-family="sans-serif">\n'
        '<rect width="100%" height="100%" fill="#ffffff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


if __name__ == "__main__":
    default = Path(__file__).parent.parent / "docs" / "pictures" / "layers.svg"
    Path(sys.argv[1] if len(sys.argv) > 1 else default).write_text(draw())
