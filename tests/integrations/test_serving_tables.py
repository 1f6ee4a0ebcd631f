# SPDX-License-Identifier: Apache-2.0
"""The tables of ``bench transformers`` are made of the JSON that it writes, where there is any."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pyvattn.bench.report import Measure, Report, Setup

pytest.importorskip("torch", reason="the bench needs torch")
pytest.importorskip("transformers", reason="the bench is of transformers")
pytest.importorskip("psutil", reason="transformers counts the host's memory with psutil")

from pyvattn.bench.transformers import Options, measure

ROOT = Path(__file__).parent.parent.parent
SMALL = {
    "model": "tiny",
    "device": "cpu",
    "requests": 3,
    "prompt_tokens": 20,
    "new_tokens": 8,
    "rounds": 2,
}


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """The module of the tables, with no results."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import serving_tables

    monkeypatch.setattr(serving_tables, "RESULTS", tmp_path)
    yield serving_tables
    for name in ("serving_tables", "results_files"):
        sys.modules.pop(name, None)


def keep(path, **options):
    """Run the bench at a small size and keep its JSON."""
    found = list(measure(Options(**SMALL, **options)))
    setups = [one for one in found if isinstance(one, Setup)]
    measures = [one for one in found if isinstance(one, Measure)]
    path.parent.mkdir(exist_ok=True)
    Report("transformers", measures, setups).write(path)
    return setups[0].values, {one.name: one for one in measures}


@pytest.mark.filterwarnings("ignore")  # the library's own
def test_the_figure_on_the_first_screen_names_its_baseline(tables, tmp_path):
    baseline, found = keep(tmp_path / "gpu" / "transformers-32x4096.json")
    first, last = tables.front()
    for title in ("output, whole run", "output, while all decode"):
        ratio = found[f"ours / {baseline['name']}, 3 x (20 + 8) tokens: {title}"].value
        assert f" {ratio:.2f} times" in first
    assert f"against transformers {baseline['versions']['transformers']}, SDPA" in first
    assert "3 x (20 + 8) tokens" in first
    assert last == "- [All results](docs/results.md)."


@pytest.mark.filterwarnings("ignore")  # the library's own
def test_every_load_has_a_row_with_ratio_spread_and_both_figures(tables, tmp_path):
    baseline, found = keep(tmp_path / "gpu" / "transformers-32x4096.json")
    _, live = keep(tmp_path / "gpu" / "transformers-arrivals.json", rate=20.0)
    text = "\n".join(tables.transformers())
    for measures, load, title in (
        (found, "3 x (20 + 8) tokens", "output, while all decode"),
        (
            live,
            "3 x (20 + 8) tokens, 20 a second (Poisson, seed 1)",
            "time to the first token, p99",
        ),
    ):
        ratio = measures[f"ours / {baseline['name']}, {load}: {title}"]
        assert title in text
        assert f"[{load}](results/gpu/" in text
        assert f"{ratio.value:.3g} ({ratio.low:.3g} to {ratio.high:.3g}): " in text
    share = found["ours: share of the run that waits for mapping"].value
    assert f"{share:.1f} % (" in text


def test_without_results_the_pages_say_so(tables):
    assert list(tables.front()) == ["- [All results](docs/results.md)."]
    assert list(tables.transformers()) == [
        "No results of `pyvattn bench transformers` are kept here yet."
    ]
