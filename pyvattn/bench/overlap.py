# SPDX-License-Identifier: Apache-2.0
"""``bench overlap``: what mapping adds to a decode step, and how much prefetch hides.

The same decode step, of a stack shaped like Llama-3-8B, runs over three caches by
turns: one with everything backed beforehand, one that maps when a step needs it, one
that maps the next step's pages while the device computes. Afterwards a few requests
are released, for what zeroing their pages takes.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pyvattn.arguments import Settings, check_type
from pyvattn.bench.decoder import Decoder, Weights
from pyvattn.bench.report import Measure
from pyvattn.cache import KVCache
from pyvattn.gpu_timing import require_gpu
from pyvattn.spec import CacheSpec

_MODES = ("preallocated", "synchronous", "prefetch")
_SHORTEST_START, _LONGEST_START = 128, 512
# What the requests of the Azure conversation trace of 2023 generate, on average: a row
# is released once in so many steps.
_ANSWER_TOKENS = 211


@dataclass(frozen=True)
class Options(Settings, least={"steps": 100}):
    """``batch`` rows start at 128 to 512 tokens and make ``steps`` more each."""

    driver: str = "cumem"
    page_size: str = "auto"
    layout: str = "auto"
    device: int = 0
    batch: int = 256
    steps: int = 512
    layers: int = 32


class Run:
    """One mode: a cache, its decoder, and the seconds that its steps took."""

    def __init__(self, torch: Any, options: Options, weights: Weights, mode: str) -> None:
        self._torch, self._mode = torch, mode
        longest = _LONGEST_START + options.steps + 1
        spec = CacheSpec(
            options.layers,
            8,
            128,
            dtype="bfloat16",
            max_slots=options.batch,
            max_tokens=longest,
        )
        self.cache = KVCache(
            spec,
            device=f"cuda:{options.device}",
            driver=options.driver,
            page_size=options.page_size,
            layout=options.layout,
            memory=2 * spec.max_slots * spec.row_bytes,
            background=mode == "prefetch",
        )
        source = random.Random(0)
        self._lengths = {
            self.cache.acquire(): source.randint(_SHORTEST_START, _LONGEST_START)
            for _ in range(options.batch)
        }
        if mode == "preallocated":
            self.cache.step(dict.fromkeys(self._lengths, longest))
        self.cache.step(self._lengths)
        self.decoder = Decoder(torch, weights, self.cache, options.batch)
        self.decoder.slots.copy_(torch.tensor([slot.index for slot in self._lengths]))
        self.decoder.lengths.copy_(torch.tensor(list(self._lengths.values())))
        self.seconds: list[float] = []

    def step(self) -> None:
        """Decode one token of every row, as an engine does that reads each token."""
        began = time.perf_counter()
        self._lengths = {slot: length + 1 for slot, length in self._lengths.items()}
        self.cache.step(self._lengths)
        self.decoder.lengths.add_(1)
        self.decoder.launch()
        if self._mode == "prefetch":
            self.cache.prefetch({slot: length + 1 for slot, length in self._lengths.items()})
        self._torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - began)

    def time_zeroing(self, rows: int) -> list[float]:
        """Release rows one by one; return the seconds until the pages of each are zeros.

        Nothing else runs meanwhile, and the way to the device and back is counted as
        well: beside a decode step it cannot cost more.
        """
        seconds = []
        for slot in list(self._lengths)[:rows]:
            del self._lengths[slot]
            began = time.perf_counter()
            self.cache.release(slot)
            self.cache.drain()
            self._torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
        return seconds


def measure(options: Options) -> Iterator[Measure]:
    """Yield every measure. Raises DriverUnavailable without a GPU."""
    check_type("options", options, Options)
    torch = require_gpu(options.device)
    weights = Weights(torch, options.layers, f"cuda:{options.device}")
    runs = {mode: Run(torch, options, weights, mode) for mode in _MODES}
    try:
        for run in runs.values():
            run.decoder.capture()
        blocked = {mode: run.cache.stats().map_seconds_blocking for mode, run in runs.items()}
        # Python's collector stops a step for milliseconds now and then, in any mode.
        gc.collect()
        gc.disable()
        for _ in range(options.steps):
            for run in runs.values():
                run.step()
        yield from _report(options, runs, blocked)
        yield _zeroing(options, runs["prefetch"])
    finally:
        gc.enable()
        for run in runs.values():
            run.cache.close()


def _report(options: Options, runs: dict[str, Run], blocked: dict[str, float]) -> Iterator[Measure]:
    batch = f"batch {options.batch}"
    note = runs["prefetch"].decoder.description
    for mode, run in runs.items():
        for name, value in _spread(run.seconds).items():
            # Where the worst is the first of all, or meets another's, tells what it came from.
            where = f"; step {run.seconds.index(value)}" if name == "worst" else ""
            yield Measure(f"{mode}, {batch}: step, {name}", value * 1e3, "ms", note=note + where)
        spent = run.cache.stats().map_seconds_blocking - blocked[mode]
        yield Measure(
            f"{mode}, {batch}: share of step time that waits for mapping",
            spent / sum(run.seconds) * 100,
            "%",
            at_most=1 if mode == "prefetch" else None,
        )
    base = _spread(runs["preallocated"].seconds)
    for mode in _MODES[1:]:
        for name, value in _spread(runs[mode].seconds).items():
            bound = 1.02 if mode == "prefetch" and name == "p99" and options.batch == 256 else None
            yield Measure(
                f"{mode} / preallocated, {batch}: step, {name}",
                value / base[name],
                "times",
                rounds=options.steps,
                at_most=bound,
            )


def _zeroing(options: Options, run: Run) -> Measure:
    seconds = statistics.median(run.time_zeroing(min(options.batch, 16)))
    rows_a_step = options.batch / _ANSWER_TOKENS
    return Measure(
        f"batch {options.batch}: zeroing of recycled pages, share of step time",
        seconds * rows_a_step / statistics.median(run.seconds) * 100,
        "%",
        at_most=1,
        note=f"a row of {seconds * 1e3:.2g} ms released every {1 / rows_a_step:.2g} steps",
    )


def _spread(seconds: list[float]) -> dict[str, float]:
    hundredths = statistics.quantiles(seconds, n=100, method="inclusive")
    return {"p50": hundredths[49], "p99": hundredths[98], "worst": max(seconds)}
