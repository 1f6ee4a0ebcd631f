# SPDX-License-Identifier: Apache-2.0
"""The tables of ``bench transformers``, and what README's first screen says of speed.

Both go by what is there: docs/results/GPU/transformers-*.json.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from results_files import RESULTS, source

# How transformers calls attention, without "paged|", and what it is.
_ATTENTION = {
    "flash_attention_3": "FlashAttention-3",
    "flash_attention_2": "FlashAttention-2",
    "sdpa": "SDPA",
}


def figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


class Serving:
    """One JSON of ``bench transformers``."""

    def __init__(self, file: Path) -> None:
        self.found = json.loads(file.read_text())
        self.name = str(file.relative_to(RESULTS))
        self.gpu = self.found["machine"].get("gpus", ["a CPU"])[0]
        self.measures = {measure["name"]: measure for measure in self.found["measures"]}
        ratio = next(name for name in self.measures if name.startswith("ours / "))
        self.load = ratio.removeprefix(f"ours / {self.found['baseline']['name']}, ")
        self.load = self.load.rpartition(": ")[0]

    @property
    def title(self) -> str:
        """The requests, and what was asked of our engine besides."""
        ours = self.found["baseline"]["ours"]
        asked = [word for word in ("compiled", "fused") if word in ours]
        return f"{self.load}, ours {' and '.join(asked)}" if asked else self.load

    @property
    def baseline(self) -> str:
        """What it was measured against, in words."""
        baseline = self.found["baseline"]
        if baseline["name"].startswith("vLLM"):
            return str(baseline["name"])
        attention = baseline["attention"].removeprefix("paged|")
        words = (
            f"transformers {baseline['versions']['transformers']}, "
            f"{_ATTENTION.get(attention, attention)}"
        )
        level = baseline["settings"]["default_compile_level"]
        return words + (f", compile level {level}" if level else "")

    def measure(self, who: str, title: str) -> dict[str, Any]:
        """A figure of "ours", of "theirs", or of "ours / theirs"."""
        name = who.replace("theirs", self.found["baseline"]["name"])
        return self.measures[f"{name}, {self.load}: {title}"]

    def both(self) -> tuple[str, str]:
        """The ratios over the whole run and while all decode."""
        whole, decode = (
            self.measure("ours / theirs", f"output, {title}")["value"]
            for title in ("whole run", "while all decode")
        )
        return f"{whole:.2f}", f"{decode:.2f}"

    def cell(self, title: str) -> str:
        """A ratio, its quartiles and the two figures that it is of."""
        ratio = self.measure("ours / theirs", title)
        ours, theirs = (self.measure(who, title)["value"] for who in ("ours", "theirs"))
        spread = "" if ratio["low"] is None else f" ({ratio['low']:.3g} to {ratio['high']:.3g})"
        unit = self.measure("ours", title)["unit"]
        return f"{ratio['value']:.3g}{spread}: {figure(ours)} / {figure(theirs)} {unit}"

    def mapping(self) -> str:
        share = "ours: share of the run that waits for mapping"
        first = self.measures[f"{share}, first round"]
        return f"{self.measures[share]['value']:.1f} % ({first['value']:.1f} %)"


def servings() -> list[Serving]:
    files = sorted(RESULTS.glob("*/transformers-*.json"))
    # A profile compares nothing.
    return [Serving(file) for file in files if "baseline" in json.loads(file.read_text())]


def front() -> Iterator[str]:
    """What to expect, with its baselines, for the first screen of README."""
    found = {Path(one.name).stem: one for one in servings()}
    if one := found.get("transformers-32x4096"):
        whole, decode = one.both()
        yield (
            f"- **Serving** {one.load} with a model of Llama-3-8B's shape in bf16 on one "
            f"{one.gpu}, against {one.baseline} (its own continuous batching, "
            f"CUDA graphs on): {decode} times the tokens a second while all requests decode, "
            f"{whole} times over the whole run."
        )
    if one := found.get("transformers-compiled"):
        whole, decode = one.both()
        compiled = "the same with its decode step compiled (off by default)"
        yield f"  Against {compiled}: {decode} and {whole}."
    if one := found.get("transformers-both-compiled"):
        whole, decode = one.both()
        yield f"  The same with ours compiled too (`compile=True`): {decode} and {whole}."
    if one := found.get("transformers-both-fused"):
        whole, decode = one.both()
        fused = "its projections fused as well (`fuse_projections=True`)"
        yield f"  With {fused}: {decode} and {whole}."
    yield from _kernels()
    yield "- [All results](docs/results.md)."


def _kernels() -> Iterator[str]:
    """What rows that are contiguous are worth to a kernel, against its own paged form."""
    file = RESULTS / "h200" / "attention-cumem.json"
    if not file.exists():
        return
    found = json.loads(file.read_text())
    values = {each["name"]: each["value"] for each in found["measures"]}
    case = "flash-attn-3, prefill, 1 x 16,384 tokens: ours / paged"
    small, large = values[f"{case}, 16 tokens"], values[f"{case}, 256 tokens"]
    yield (
        f"- **Attention**: FlashAttention-3 prefills 16,384 tokens in {small:.2f} of the time of "
        f"its paged form with blocks of 16 tokens, and in {large:.2f} with blocks of 256."
    )


_LOADS_AT_ONCE = ("output, while all decode", "output, whole run")
_LOADS_LIVE = (
    "output, whole run",
    "time to the first token, p50",
    "time to the first token, p99",
    "time per output token, p50",
    "time per output token, p99",
    "time between two tokens, p99",
)


def transformers() -> Iterator[str]:
    """Continuous batching, ours over the library's: requests at once, then as they arrive."""
    found = servings()
    if not found:
        yield "No results of `pyvattn bench transformers` are kept here yet."
        return
    for titles, live in ((_LOADS_AT_ONCE, False), (_LOADS_LIVE, True)):
        chosen = [one for one in found if ("Poisson" in one.load) == live]
        if not chosen:
            continue
        if live:
            yield ""
        yield f"| requests | against | {' | '.join(titles)} | waiting for mapping (first round) |"
        yield "| --- " * (len(titles) + 3) + "|"
        for one in chosen:
            cells = " | ".join(one.cell(title) for title in titles)
            link = f"[{one.title}](results/{one.name})"
            yield f"| {link}, {one.gpu} | {one.baseline} | {cells} | {one.mapping()} |"
    yield ""
    for one in found:
        yield f"- {source(one.found, one.name)}"
