# SPDX-License-Identifier: Apache-2.0
"""Times alternatives side by side, so that what disturbs one disturbs the others too."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the median over rounds, and the quartiles as the spread."""

    median: float
    low: float
    high: float
    rounds: int


def interleave(
    alternatives: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 31,
    round_seconds: float = 0.02,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> dict[str, list[float]]:
    """Return seconds a call of every alternative, one value for each round.

    In each round every alternative runs in turn, as often as takes about
    ``round_seconds``. The garbage collector is off meanwhile. ``clock`` counts
    nanoseconds; ``time.thread_time_ns`` leaves out what other processes took,
    for work that waits for no other thread.
    """
    counts = {name: _calls_in(call, round_seconds, clock) for name, call in alternatives.items()}
    seconds: dict[str, list[float]] = {name: [] for name in alternatives}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, call in alternatives.items():
                seconds[name].append(_time(call, counts[name], clock))
    finally:
        if collecting:
            gc.enable()
    return seconds


def summarise(values: Sequence[float]) -> Timing:
    """Return median and quartiles of at least two values."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Timing(median, low, high, len(values))


def ratios(over: Sequence[float], under: Sequence[float]) -> Timing:
    """Return the ratio of paired values, round by round."""
    return summarise([a / b for a, b in zip(over, under, strict=True)])


def _time(call: Callable[[], object], count: int, clock: Callable[[], int]) -> float:
    began = clock()
    for _ in range(count):
        call()
    return (clock() - began) / count / 1e9


def _calls_in(call: Callable[[], object], seconds: float, clock: Callable[[], int]) -> int:
    """Return how many calls take about ``seconds``, having warmed up."""
    count = 1
    while (spent := _time(call, count, clock) * count) < seconds / 4:
        count *= 4 if spent < seconds / 16 else 2
    return max(1, round(count * seconds / spent))
