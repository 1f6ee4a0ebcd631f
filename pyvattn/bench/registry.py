# SPDX-License-Identifier: Apache-2.0
"""The list of benches: add one here, and ``pyvattn bench`` has it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Bench:
    """A bench: the module whose ``measure(options)`` yields its measures, and its help line."""

    module: str
    help: str


BENCHES = {
    "core": Bench("pyvattn.bench.core", "Time bookkeeping, growth and replay (any machine)."),
    "api": Bench("pyvattn.bench.api", "Time each driver call, by extent size."),
    "bandwidth": Bench("pyvattn.bench.bandwidth", "Time how fast memory becomes usable."),
    "attention": Bench(
        "pyvattn.bench.attention", "Time kernels on our memory, on cudaMalloc's, and paged."
    ),
    "float8": Bench(
        "pyvattn.bench.float8", "Time attention to float8, against bfloat16 and blocks."
    ),
    "overlap": Bench("pyvattn.bench.overlap", "Time what mapping adds to a decode step."),
    "offload": Bench(
        "pyvattn.bench.offload", "Time a request to host memory and back, against one copy."
    ),
    "transfer": Bench(
        "pyvattn.bench.transfer", "Time a request from GPU to GPU, against one copy and blocks."
    ),
    "transformers": Bench(
        "pyvattn.bench.transformers", "Serve requests, against transformers' own batching."
    ),
    "vllm": Bench("pyvattn.bench.vllm", "Serve requests with vLLM, over rows and stock."),
    "elastic": Bench(
        "pyvattn.bench.elastic", "Serve requests with vLLM engines that share a GPU, and stock."
    ),
    "plan": Bench("pyvattn.bench.plan", "Check the planner's choices on a trace (any machine)."),
    "reuse": Bench(
        "pyvattn.bench.reuse", "Count driver calls per request, cold and warm (any machine)."
    ),
    "capacity": Bench(
        "pyvattn.bench.capacity", "Count the requests of a trace that fit (any machine)."
    ),
    "hybrid": Bench(
        "pyvattn.bench.hybrid",
        "Count what models with windows or states hold and fit (any machine).",
    ),
    "sharing": Bench(
        "pyvattn.bench.sharing", "Count what forks and common prompts hold (any machine)."
    ),
    "rings": Bench("pyvattn.bench.rings", "Time windows in rings, against plain rows."),
}
