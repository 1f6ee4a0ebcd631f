# SPDX-License-Identifier: Apache-2.0
"""Write the tables of README.md and of pages in docs/ from the JSON in docs/results/.

The planner's times of attention kernels come from there as well.

Usage: python scripts/update_results.py [--check]

Each table stands between `<!-- results: NAME -->` and `<!-- end of results -->`.
With --check nothing is written, and the exit status says whether the pages are
what the JSON says.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

from kernel_times import KERNEL_TIMES, kernel_times
from results_files import RESULTS, ROOT, is_drawn, number, source
from serving_tables import front, transformers

PAGES = (
    ROOT / "README.md",
    ROOT / "docs" / "results.md",
    ROOT / "docs" / "planner.md",
    ROOT / "docs" / "gpu.md",
    ROOT / "docs" / "sharing.md",
    ROOT / "docs" / "hybrid.md",
)
SECTION = re.compile(r"<!-- results: (\w+) -->\n.*?<!-- end of results -->", re.DOTALL)


def target(measure: dict[str, Any]) -> str:
    if measure["at_least"] is not None:
        return f"at least {number(measure['at_least'])}"
    return f"at most {number(measure['at_most'])}"


def targets(found: dict[str, Any]) -> Iterator[str]:
    """The measures of a bench that have a target, each with its figure."""
    yield "| measure | figure | quartiles | target |"
    yield "| --- | --- | --- | --- |"
    for measure in found["measures"]:
        if measure["ok"] is None:
            continue
        low, high = measure["low"], measure["high"]
        spread = "" if low is None else f"{number(low)} to {number(high)}"
        missed = "" if measure["ok"] else " (missed)"
        yield (
            f"| {measure['name']} | {number(measure['value'])} {measure['unit']}{missed} | "
            f"{spread} | {target(measure)} |"
        )


def core() -> Iterator[str]:
    found = json.loads((RESULTS / "core.json").read_text())
    yield from targets(found)
    yield ""
    yield source(found, "core.json")


def replay() -> Iterator[str]:
    found = json.loads((RESULTS / "replay-azure.json").read_text())
    yield (
        f"{found['trace']['requests']:,} requests of the Azure LLM inference trace 2023 "
        f"(conversation), Llama-3-8B in bf16, {found['memory'] / 2**30:g} GiB, accounting only:"
    )
    yield ""
    yield (
        "| allocation | memory held, mean GiB | peak GiB | waste for each live request, tokens | "
        "map calls for each request |"
    )
    yield "| --- | --- | --- | --- | --- |"
    for result in found["results"]:
        calls = result["map_calls"] / result["requests"]
        yield (
            f"| {result['label']} | {result['mean_held'] / 2**30:.2f} | "
            f"{result['peak_held'] / 2**30:.2f} | {result['waste_tokens']:.1f} | {calls:.1f} |"
        )
    yield ""
    yield source(found, "replay-azure.json")


def demo() -> Iterator[str]:
    found = json.loads((RESULTS / "demo.json").read_text())
    yield "| memory for the same 24 requests | MiB |"
    yield "| --- | --- |"
    for label, key in (
        ("static cache", "static"),
        ("16-token paged cache, at its peak", "paged_peak"),
        ("pyvattn, mapped for live requests at its peak", "live_peak"),
        ("tokens, at their peak", "used_peak"),
    ):
        yield f"| {label} | {found[key] / 2**20:.1f} |"
    yield ""
    yield source(found, "demo.json")


def capacity() -> Iterator[str]:
    found = json.loads((RESULTS / "capacity.json").read_text())
    measures = [measure for measure in found["measures"] if measure["unit"] == "requests"]
    yield f"Requests that fit, median of {measures[0]['rounds']} places in the trace:"
    yield ""
    yield "| allocation | requests | quartiles |"
    yield "| --- | --- | --- |"
    for measure in measures:
        low, high = number(measure["low"]), number(measure["high"])
        yield f"| {measure['name']} | {number(measure['value'])} | {low} to {high} |"
    yield ""
    yield source(found, "capacity.json")


def sharing() -> Iterator[str]:
    found = json.loads((RESULTS / "sharing.json").read_text())
    yield from targets(found)
    yield ""
    for measure in found["measures"]:
        if measure["ok"] is None:
            figure = f"{number(measure['value'])} {measure['unit']}"
            yield f"* {measure['name']}: {figure} ({measure['note']})"
    yield ""
    yield source(found, "sharing.json")


def hybrid() -> Iterator[str]:
    """Each model in MiB of a request by its length, and in requests that fit."""
    found = json.loads((RESULTS / "hybrid.json").read_text())
    models: dict[str, dict[str, dict[str, Any]]] = {}
    peaks: dict[str, dict[str, dict[str, Any]]] = {}
    for measure in found["measures"]:
        model, _, name = measure["name"].partition(", ")
        kind, _, allocation = name.partition(", ")
        if kind == "peak":
            peaks.setdefault(model, {})[allocation] = measure
        else:
            models.setdefault(model, {})[name] = measure
    allocations = list(dict.fromkeys(name.split(", ")[-1] for name in models["Gemma-3-27B"]))
    held = [name for name in allocations if " / " not in name]
    counted = [name for name in held if name in models["Gemma-3-27B"]]
    lengths = ("12", "2,000", "100,000")
    yield f"MiB that a request of {', '.join(lengths[:-1])} and {lengths[-1]} tokens holds:"
    yield ""
    yield f"| model | {' | '.join(held)} |"
    yield f"| {'--- | ' * (len(held) + 1)}".rstrip()
    for model, values in models.items():
        cells = (
            ", ".join(f"{values[f'{n} tokens, {name}']['value']:,.1f}" for n in lengths)
            for name in held
        )
        yield f"| {model} | {' | '.join(cells)} |"
    yield ""
    rounds, note = values["rows"]["rounds"], values["rows"]["note"]
    yield f"Requests that fit, median of {rounds} places in the trace ({note}), and over the first:"
    yield ""
    yield f"| model | {' | '.join(counted)} |"
    yield f"| {'--- | ' * (len(counted) + 1)}".rstrip()
    for model, values in models.items():
        counts = []
        for name in counted:
            ratio = values.get(f"{name} / {counted[0]}")
            times = "" if ratio is None else f" ({ratio['value']:.2f} times)"
            counts.append(f"{values[name]['value']:,.0f}{times}")
        yield f"| {model} | {' | '.join(counts)} |"
    yield ""
    yield from _peaks(peaks)
    yield source(found, "hybrid.json")


def _peaks(models: dict[str, dict[str, dict[str, Any]]]) -> Iterator[str]:
    """What a long prompt holds at most while it is computed."""
    some = next(iter(models.values()))
    note = next(iter(some.values()))["note"]
    yield f"MiB that a prompt holds at most while it is computed ({note}), and over the first:"
    yield ""
    held = [name for name in some if " / " not in name]
    yield f"| model | {' | '.join(held)} | over the first |"
    yield f"| {'--- | ' * (len(held) + 2)}".rstrip()
    for model, values in models.items():
        cells = [f"{values[name]['value']:,.0f}" for name in held]
        share = next(value for name, value in values.items() if " / " in name)
        yield f"| {model} | {' | '.join(cells)} | {share['value']:.2f} |"
    yield ""


def reuse() -> Iterator[str]:
    """Driver calls for each admitted request: one row for each case and amount of memory."""
    found = json.loads((RESULTS / "reuse.json").read_text())
    values = {measure["name"]: measure["value"] for measure in found["measures"]}
    yield "| pages, memory over the mean need | calls, cold | calls, warm | warm / cold |"
    yield "| --- | --- | --- | --- |"
    for name, value in values.items():
        case, _, what = name.rpartition(": ")
        if what != "warm":
            continue
        cold = values[f"{case.partition(', memory')[0]}: cold, read ahead"]
        yield f"| {case} | {number(cold)} | {number(value)} | {value / cold:.3g} |"
    yield ""
    yield source(found, "reuse.json")


def gpu() -> Iterator[str]:
    """Every bench in the folders of docs/results/, which are named after GPUs; for docs/."""
    for file in sorted(RESULTS.glob("*/*.json")):
        found = json.loads(file.read_text())
        if not any(measure["ok"] is not None for measure in found.get("measures", ())):
            continue
        name = str(file.relative_to(RESULTS))
        yield f"### {name[:-5]}"
        yield ""
        yield from targets(found)
        yield ""
        plot = f", [plot](pictures/results/{name[:-5]}.png)" if is_drawn(found) else ""
        yield f"{source(found, name)}{plot}"
        yield ""


# A line, the JSON under docs/results/h200 (a pattern of its name, where each kernel was measured
# by itself), and a pattern for its measures.
_HEADLINES = (
    ("decode step of 256 rows, p99, prefetch / preallocated: `cumem`, 2M pages", "overlap-256",
     r"^prefetch / preallocated, .*p99"),
    ("the same, mapped in the step itself", "overlap-256", r"^synchronous / preallocated, .*p99"),
    ("the same, prefetch: `stock-uvm`, 64K pages", "overlap-256-64k",
     r"^prefetch / preallocated, .*p99"),
    ("kernels on our memory / on cudaMalloc: `cumem`, layout `layer`", "attention-cumem*",
     r": ours / cudaMalloc$"),
    ("the same: `stock-uvm`, 64K pages, layout `layer`, FlashAttention-3 and torch's varlen",
     "attention-64k", r"^(flash-attn-3|torch-varlen).*: ours / cudaMalloc$"),
    ("the same: `stock-uvm`, 2M pages, layout `token`, against packed tokens",
     "attention-token-2m*", r": ours / cudaMalloc$"),
    ("the same, against the same strides", "attention-token-2m*",
     r": ours / cudaMalloc, same strides$"),
    ("FlashAttention-3, prefill of 16,384 tokens: ours / its paged form, 16 tokens a block",
     "attention-cumem", r"prefill, .*: ours / paged, 16 tokens"),
    ("the same, decode of 32 x 4,096 tokens", "attention-cumem",
     r"decode, .*: ours / paged, 16 tokens"),
    ("2 MiB made usable: `stock-uvm` with 64K pages out of a slab / `cumem` with a new page",
     "bandwidth", r"from slabs .*extents of 2.00 MiB"),
    ("the same where `cumem` has the page already", "bandwidth", r"both as reused .* 2.00 MiB"),
    ("64 MiB made usable, out of a slab / with new pages", "bandwidth",
     r"from slabs .*extents of 64.0 MiB"),
    ("the same where `cumem` has the pages already", "bandwidth", r"both as reused .* 64.0 MiB"),
)  # fmt: skip


def headlines() -> Iterator[str]:
    """What a reader wants first of the figures of one GPU."""
    yield "| one NVIDIA H200, ratios within a run | figure | target |"
    yield "| --- | --- | --- |"
    for title, name, pattern in _HEADLINES:
        files = sorted((RESULTS / "h200").glob(f"{name}.json"))
        measures = [one for file in files for one in json.loads(file.read_text())["measures"]]
        chosen = [one for one in measures if re.search(pattern, one["name"])]
        if not chosen:
            raise SystemExit(f"{RESULTS / 'h200'}: no {name}.json has a measure like {pattern}")
        values = sorted(one["value"] for one in chosen)
        figure = f"{values[0]:.4g}"
        if len(values) > 1:
            figure += f" to {values[-1]:.4g}, {len(values)} cases"
        aimed = {target(one) for one in chosen if one["ok"] is not None}
        missed = " (missed)" if any(one["ok"] is False for one in chosen) else ""
        link = f"[{files[0].stem}](results/h200/{files[0].name})"
        if len(files) > 1:
            link = f"{len(files)} runs in [gpu.md](gpu.md)"
        yield f"| {title} ({link}) | {figure}{missed} | {', '.join(sorted(aimed))} |"


def plan() -> Iterator[str]:
    found = json.loads((RESULTS / "plan.json").read_text())
    cases: dict[str, dict[str, dict[str, Any]]] = {}
    for measure in found["measures"]:
        case, _, what = measure["name"].partition(": ")
        cases.setdefault(case, {})[what] = measure
    yield (
        "| model | driver | guard, tokens | choice | waste of a live request, tokens | "
        "map calls of a step | loss above the best candidate, points |"
    )
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for case, measures in cases.items():
        if "waste of a live request" not in measures:
            continue
        model, driver, guard = case.split("; ")
        waste = measures["waste of a live request"]
        choice = waste["note"].removeprefix("layout ").removesuffix(" pages")
        others = ("map calls of a step", "loss above the best candidate")
        figures = (f"{measures[name]['value']:.3g}" for name in others)
        yield (
            f"| {model} | `{driver}` | {guard.removeprefix('guard ')} | {choice} | "
            f"{waste['value']:.1f} | {' | '.join(figures)} |"
        )
    yield ""
    for case, measures in cases.items():
        if ratio := measures.get("waste of 64K pages / 2M pages"):
            yield f"- {case}: waste of 64K pages / 2M pages is {ratio['value']:.3g}."
    yield ""
    yield source(found, "plan.json")


TABLES: dict[str, Callable[[], Iterator[str]]] = {
    "core": core,
    "replay": replay,
    "demo": demo,
    "capacity": capacity,
    "reuse": reuse,
    "sharing": sharing,
    "hybrid": hybrid,
    "front": front,
    "transformers": transformers,
    "gpu": gpu,
    "headlines": headlines,
    "plan": plan,
}


def render(text: str) -> str:
    def fill(match: re.Match[str]) -> str:
        name = match[1]
        body = "\n".join(TABLES[name]())
        return f"<!-- results: {name} -->\n{body}\n<!-- end of results -->"

    return SECTION.sub(fill, text)


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    wanted = {page: render(page.read_text()) for page in PAGES}
    wanted[KERNEL_TIMES] = kernel_times()
    stale = [file for file, text in wanted.items() if file.read_text() != text]
    for file in stale:
        if arguments:
            name = file.relative_to(ROOT)
            print(f"{name} is not what docs/results/ says: run `make results`", file=sys.stderr)
        else:
            file.write_text(wanted[file])
    return int(bool(arguments and stale))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
