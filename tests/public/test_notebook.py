# SPDX-License-Identifier: Apache-2.0
"""The notebook in examples/ runs, and what it draws is true."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

matplotlib = pytest.importorskip("matplotlib", reason="pip install 'pyvattn[plot]'")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NOTEBOOK = EXAMPLES / "memory.ipynb"


def cells():
    found = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in found if cell["cell_type"] == "code"]


@pytest.fixture
def names(monkeypatch):
    """What the cells leave behind, run one after the other as a notebook does."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    matplotlib.use("Agg")
    left: dict[str, object] = {"__name__": "notebook"}
    for number, cell in enumerate(cells()):
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), left)
    yield left
    left["plt"].close("all")
    sys.modules.pop("engine", None)


def test_memory_follows_the_tokens(names):
    used, live, mapped = names["used"], names["live"], names["mapped"]
    assert len(used) == len(live) == len(mapped) == 240
    for tokens, needed, under_slots in zip(used, live, mapped, strict=True):
        assert tokens <= needed <= under_slots <= names["whole"]
    assert max(live) < names["whole"]
    assert max(names["requests"]) > 1
    assert {line.get_text() for line in names["axes"].get_legend().get_texts()} == {
        "allocated whole",
        "mapped",
        "live requests",
        "tokens",
    }


def test_it_holds_no_output():
    """What a reader sees is what ran on his machine."""
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells())


@pytest.mark.filterwarnings("default")
def test_a_kernel_runs_it():
    pytest.importorskip("ipykernel", reason="pip install ipykernel nbclient")
    nbclient = pytest.importorskip("nbclient", reason="pip install ipykernel nbclient")
    nbformat = pytest.importorskip("nbformat")
    done = nbclient.NotebookClient(
        nbformat.read(NOTEBOOK, as_version=4), resources={"metadata": {"path": str(EXAMPLES)}}
    ).execute()
    drawn = [out for cell in done.cells for out in cell.get("outputs", []) if "data" in out]
    assert any("image/png" in out["data"] for out in drawn)
