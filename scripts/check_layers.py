# SPDX-License-Identifier: Apache-2.0
"""Check that no import and no #include points up: who may know whom.

The tables below are read from the bottom of the house to its top. Rooms in one
row may know those of rows before it and themselves, not their neighbours. C++
tests may know everything. Imports for type checkers alone do not count: nothing
is loaded by them.

    check_layers.py [FOLDER]     check the tree at FOLDER, by default this one
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

# fmt: off
PYTHON = (  # pyvattn/ and cli/
    # one exception for each way to fail; the core
    ("errors", "_native"),
    # words and numbers; the attention kernels that are known; what is logged
    ("kernels", "logs", "text", "whole_numbers"),
    # what callers may pass
    ("arguments",),
    # sizes, dtypes, samples; CUDA and NVIDIA's text files
    ("cuda", "cuda_graphs", "dtypes", "fences", "nvidia", "nvtx", "samples", "stats", "units"),
    # files that people name
    ("files",),
    # rows of traces; pictures; what "auto" means; who keeps slots for later, and who drops them;
    # layers that are alike; what blocks of tokens are known by; the end of the process; copies
    # between two GPUs
    (
        "at_exit",
        "auto",
        "block_hashes",
        "budget",
        "dropped",
        "gpu_link",
        "gpu_timing",
        "keepers",
        "layer_group",
        "plots",
        "prefix_rows",
        "trace_rows",
    ),

    # layers that keep a state
    ("state_group",),
    # what a cache must hold, and where it lies
    ("configs", "geometry", "spec_groups"),
    ("spec", "state_rows"),
    # this computer; requests; calls of a driver
    ("calls", "machine", "traces"),
    # which page size and which layout
    ("planner",),
    # which drivers there are
    ("detect",),
    # from "auto" to a driver, a page size and a layout
    ("resolve",),
    # memory that processes share; what Prometheus reads of it
    ("shared",),
    ("metrics",),
    # K and V of a layer as tensors; what owns memory until it is closed
    ("layers", "native_groups", "opened", "swap"),
    ("slot_copies",),
    ("cache", "rows"),
    # prompts that begin alike; slots that go to other processes
    ("prefix", "transfers"),
    # what runs over a cache
    ("attention", "probe", "replay"),
    # measuring this machine; other people's engines
    ("calibrate", "integrations"),
    # what people run to see figures
    ("bench", "demo"),
    ("cli",),
)
CXX = (  # uvm_ext/
    ("base",),                    # errors, text, fork
    ("drivers",),                 # memory of one kind, behind one interface
    ("adaptors", "emulation"),    # drivers around drivers; a machine that is not there
    ("blocks", "ledger"),         # pages with names; memory that processes share
    ("rows",),                    # which block is where: addresses
    ("cache",),                   # slots and what they hold: policy
    ("python",),                  # bindings
    ("tests",),
)
# fmt: on
# Rooms that only these may know, whatever the row.
ONLY_FOR = {"emulation": ("python", "tests")}
# Both may be known from anywhere: what `import pyvattn` gives, and `python -m pyvattn`.
_FRONT = ("__init__", "__main__")
_INCLUDE = re.compile(r'\s*#\s*include\s+"([^"]+)"')

Arrow = tuple[Path, int, str, str]
"""File, line, the room that it stands in, and the room that it names."""


def python_arrows(root: Path) -> Iterator[Arrow]:
    """Yield every import of one room of the package by another."""
    for top, place in ((root / "pyvattn", None), (root / "cli", "cli")):
        for path in sorted(top.rglob("*.py")):
            inside = path.relative_to(top)
            room = place or inside.parts[0].removesuffix(".py")
            # pyvattn/cli is a link to cli/.
            if room not in _FRONT and (place or room != "cli"):
                for line, module in _imports(ast.parse(path.read_text(encoding="utf-8"))):
                    yield path.relative_to(root), line, room, module


def _imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and _is_type_checking(node.test):
            continue
        if isinstance(node, ast.ImportFrom) and node.module == "pyvattn":
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from _room(node.lineno, node.module or "")
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield from _room(node.lineno, alias.name)
        yield from _imports(node)


def _room(line: int, module: str) -> Iterator[tuple[int, str]]:
    package, _, rest = module.partition(".")
    if package == "pyvattn" and rest:
        yield line, rest.partition(".")[0]


def _is_type_checking(test: ast.expr) -> bool:
    return isinstance(test, ast.Name) and test.id == "TYPE_CHECKING"


def cxx_arrows(root: Path) -> Iterator[Arrow]:
    """Yield every #include of one folder of the core by another."""
    top = root / "uvm_ext"
    for path in sorted(path for path in top.rglob("*") if path.suffix in (".cpp", ".hpp")):
        room = path.relative_to(top).parts[0]
        for line, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if (found := _INCLUDE.match(text)) and "/" in found.group(1):
                yield path.relative_to(root), line, room, found.group(1).partition("/")[0]


def complaints(arrows: Iterator[Arrow], rows: tuple[tuple[str, ...], ...]) -> Iterator[str]:
    """Yield a line for every arrow that does not point down, and for rooms in no row."""
    height = {room: level for level, row in enumerate(rows) for room in row}
    for path, line, room, other in arrows:
        if room == other:
            continue
        if missing := [name for name in (room, other) if name not in height]:
            yield f"{path}:{line}: {missing[0]} has no place in scripts/check_layers.py"
        elif room not in ONLY_FOR.get(other, (room,)):
            yield f"{path}:{line}: {room} must not know {other}, only {', '.join(ONLY_FOR[other])}"
        elif height[other] >= height[room]:
            where = "up" if height[other] > height[room] else "sideways"
            yield f"{path}:{line}: {room} must not know {other}: that arrow points {where}"


def main() -> None:
    """Print what is wrong, one line each; exit with 1 if anything is."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1]
    found = [*complaints(python_arrows(root), PYTHON), *complaints(cxx_arrows(root), CXX)]
    print("\n".join(found) or "layers: no arrow points up")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
