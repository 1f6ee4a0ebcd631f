# SPDX-License-Identifier: Apache-2.0
"""Requests of a trace, served by stock vLLM and by ours: all at once, or as they arrive."""

from __future__ import annotations

from collections.abc import Iterator

from pyvattn.bench.report import Measure
from pyvattn.bench.serving import percentile, poisson
from pyvattn.bench.vllm_engine import Engine, Served
from pyvattn.bench.vllm_pair import Pair, compare, equal, figure, waited
from pyvattn.traces import Request, Trace

# Of vAttention over vLLM's paged kernels, on A100s (arXiv 2405.04437).
_PAPER = "the paper's figures for its traces: 1.22 and 1.29"
# The first round is there to warm up: so many requests do.
_WARM = 16
# Of what arrives a second: an engine that begins fewer falls behind. When it is done says less: a
# single long answer ends long after the last request came.
_KEEPS_UP = 0.9


def trace_load(pair: Pair, trace: Trace, rate: float) -> Iterator[Measure]:
    """Yield what both make of a trace's requests, each as long as it says.

    ``rate`` 0 is all at once; else they arrive as a Poisson process has them, so many a second.
    """
    arrivals = poisson(len(trace.requests), rate, seed=0)
    title = f"{len(trace.requests)} requests of {trace.label}"
    title += f", {rate:g} a second (Poisson, seed 0)" if rate else ", all at once"

    def serve(engine: Engine, turn: int) -> list[Served]:
        requests = trace.requests if turn else trace.requests[:_WARM]
        prompts = pair.prompts([each.prompt for each in requests], turn)
        new = [_new_tokens(each) for each in requests]
        at = arrivals[: len(requests)] if rate else None
        return [engine.serve(prompts, new, forget=True, arrivals=at)]

    rounds = list(pair.rounds(serve))
    output = sum(map(_new_tokens, trace.requests))
    yield from equal(pair, title, rounds)
    yield from compare(
        title, rounds, 0, "output", "tokens/s", lambda served: output / served.seconds, note=_PAPER
    )
    if rate:
        yield from _latencies(title, rounds)
        for index, name in enumerate(("stock", "ours")):
            begun = [_begun(both[index][0], arrivals) for both in rounds[1:]]
            share = figure(f"{name}, {title}: first tokens came", begun, "of the rate")
            keeps_up = "keeps up" if share.value >= _KEEPS_UP else "falls behind"
            yield Measure(share.name, share.value, share.unit, share.low, share.high, note=keeps_up)
    yield from waited(title, rounds, 0)


def _begun(served: Served, arrivals: list[float]) -> float:
    """Return how many requests a second got their first token, of those that arrived."""
    last = max(at + first for at, first in zip(arrivals, served.first, strict=True))
    return arrivals[-1] / last


def _new_tokens(request: Request) -> int:
    return max(1, request.generated)


def _latencies(title: str, rounds: list[tuple[list[Served], list[Served]]]) -> Iterator[Measure]:
    for percent in (50, 99):
        yield from compare(
            title,
            rounds,
            0,
            f"time to first token, p{percent}",
            "s",
            lambda served, percent=percent: percentile(served.first, percent),  # type: ignore[misc]
        )
        yield from compare(
            title,
            rounds,
            0,
            f"time per output token, p{percent}",
            "s",
            lambda served, percent=percent: percentile(_decoding(served), percent),  # type: ignore[misc]
        )


def _decoding(served: Served) -> list[float]:
    """Return the seconds a token of those requests that have more than one."""
    both = zip(served.per_token, served.tokens, strict=True)
    return [seconds for seconds, tokens in both if len(tokens) > 1]
