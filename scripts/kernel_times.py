# SPDX-License-Identifier: Apache-2.0
"""The times of attention kernels that the planner weighs, from the bench's JSON."""

from __future__ import annotations

import json
import re

from results_files import RESULTS, ROOT

KERNEL_TIMES = ROOT / "pyvattn" / "planner" / "kernel_times.json"
# One run, so that times can be compared: FlashAttention-3 with and without a table of the rows.
_MEASURED = "h200/attention-table.json"
_OVER = "flash-attn-3"
# What a kernel's form over a table of the rows is called, where it is a kernel of its own.
_BY_TABLE = {"flash-attn-3": "flash-attn-3-paged"}
_TIME = re.compile(r"([\w-]+), (decode|prefill), .*: ours(, by a table / ours)?$")


def kernel_times() -> str:
    """Return what the planner's JSON has to say."""
    found = json.loads((RESULTS / _MEASURED).read_text())
    alone: dict[str, dict[str, float]] = {}
    tables: dict[str, dict[str, float]] = {}
    for measure in found["measures"]:
        if match := _TIME.match(measure["name"]):
            kernel, kind, by_table = match.groups()
            (tables if by_table else alone).setdefault(kernel, {})[kind] = measure["value"]
    # A kernel by a table is timed against itself, round by round.
    over = alone[_OVER]
    times = {name: {kind: each[kind] / over[kind] for kind in over} for name, each in alone.items()}
    for name, ratios in tables.items():
        times[_BY_TABLE[name]] = {kind: times[name][kind] * ratios[kind] for kind in ratios}
    machine = found["machine"]
    source = (
        "decode of 32 x 4,096 tokens and a prompt of 16,384, Llama-3-8B's shape in bfloat16, "
        f"one {machine['gpus'][0]}, driver {machine['nvidia_driver']}, {found['date'][:10]}, "
        f"docs/results/{_MEASURED}"
    )
    rounded = {
        name: {kind: round(value, 4) for kind, value in sorted(each.items())}
        for name, each in times.items()
    }
    return json.dumps({"source": source, "over": _OVER, "kernels": rounded}, indent=1) + "\n"
