"""The list of benches: add one here, and ``pyvattn bench`` has it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Bench:
    """A bench: the module whose ``measure(options)`` yields its measures, and its help line."""

    module: str
    help: str


BENCHES = {
    "core": Bench("pyvattn.bench.core", "Bookkeeping, growth, replay: any machine."),
    "api": Bench("pyvattn.bench.api", "Cost of each driver call, by extent size."),
    "bandwidth": Bench("pyvattn.bench.bandwidth", "Memory made usable in a second."),
    "attention": Bench("pyvattn.bench.attention", "Kernels on our memory, cudaMalloc and paged."),
    "overlap": Bench("pyvattn.bench.overlap", "What mapping adds to a decode step."),
    "transformers": Bench("pyvattn.bench.transformers", "Continuous batching, both caches."),
    "plan": Bench("pyvattn.bench.plan", "The planner's choices on a trace: any machine."),
    "reuse": Bench("pyvattn.bench.reuse", "Driver calls a request, cold and warm: any machine."),
    "capacity": Bench("pyvattn.bench.capacity", "Requests of a trace that fit: any machine."),
}
