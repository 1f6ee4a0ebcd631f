# SPDX-License-Identifier: Apache-2.0
"""Stock vLLM and ours, who serve the same requests by turns, and what is said of the two."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median

from pyvattn.bench.report import Measure
from pyvattn.bench.timing import summarise
from pyvattn.bench.vllm_engine import Engine, Served

# Requests whose tokens part that are looked into.
_PARTED = 64
# Rounds of a workload: what stock served, and ours.
Rounds = list[tuple[list[Served], list[Served]]]


@dataclass(frozen=True)
class Plan:
    """How many rounds there are, and until when, in seconds after ``began``, one may begin.

    ``exact``: both engines run the same kernels, so their tokens must be equal.
    """

    rounds: int
    seconds: float
    began: float
    vocabulary: int
    exact: bool


class Pair:
    """Stock and ours, who serve the same requests by turns."""

    def __init__(self, stock: Engine, ours: Engine, plan: Plan) -> None:
        self.engines = (stock, ours)
        self.plan = plan

    def rounds(
        self, serve: Callable[[Engine, int], list[Served]]
    ) -> Iterator[tuple[list[Served], list[Served]]]:
        """Yield what each round gave: a warm one first, which callers leave out."""
        longest = 0.0
        limit = self.plan.seconds
        for turn in range(1 + self.plan.rounds):
            start = time.perf_counter()
            if turn > 1 and limit and start - self.plan.began + longest > limit:
                return
            order = self.engines[::-1] if turn % 2 else self.engines
            served = {engine.name: serve(engine, turn) for engine in order}
            yield served["stock"], served["ours"]
            longest = time.perf_counter() - start

    def prompts(self, counts: Sequence[int], seed: int) -> list[list[int]]:
        """Return prompts of so many random tokens."""
        draw = random.Random(seed)
        return [[draw.randrange(10, self.plan.vocabulary) for _ in range(n)] for n in counts]


def equal(pair: Pair, title: str, rounds: Rounds) -> Iterator[Measure]:
    """Count the requests for which both gave the same tokens, those of the first round too.

    All must where both run the same kernels and compile none of them. Others add up in another
    order: where they part, the two likeliest tokens must be as good as equal, by what either engine
    says.
    """
    pairs = [
        (prompt, theirs, mine)
        for stock, ours in rounds
        for first, second in zip(stock, ours, strict=True)
        for prompt, theirs, mine in zip(first.prompts, first.tokens, second.tokens, strict=True)
    ]
    parted = [each for each in pairs if each[1] != each[2]]
    cached = sum(mine.cached for _, ours in rounds for mine in ours)
    same = len(pairs) - len(parted)
    yield Measure(
        f"{title}: requests with stock's tokens",
        same / len(pairs),
        "of all",
        at_least=1.0 if pair.plan.exact else None,
        note=f"{same} of {len(pairs)}; {cached} prompt tokens were in the prefix cache",
    )
    if parted:
        yield from _margins(pair, title, [_until_they_part(*each) for each in parted])


def _until_they_part(prompt: list[int], theirs: list[int], mine: list[int]) -> list[int]:
    steps = zip(theirs, mine, strict=True)
    same = next(i for i, (their, my) in enumerate(steps) if their != my)
    return prompt + theirs[:same]


def _margins(pair: Pair, title: str, prompts: list[list[int]]) -> Iterator[Measure]:
    """Yield how far apart the two likeliest tokens are where engines part."""
    for engine in pair.engines:
        margins = engine.margins(prompts[:_PARTED])
        yield Measure(
            f"{engine.name}, {title}: widest margin where tokens part",
            max(margins),
            "logits",
            note=f"median {median(margins):.3f}, of {len(margins)} requests",
        )


def compare(
    title: str,
    rounds: Rounds,
    part: int,
    what: str,
    unit: str,
    value: Callable[[Served], float],
    at_least: float | None = None,
    at_most: float | None = None,
    note: str = "",
) -> Iterator[Measure]:
    """Yield a figure of stock and of ours, and their ratio, of every round but the first."""
    stock = [value(theirs[part]) for theirs, _ in rounds[1:]]
    ours = [value(mine[part]) for _, mine in rounds[1:]]
    for name, values in (("stock", stock), ("ours", ours)):
        yield figure(f"{name}, {title}: {what}", values, unit)
    ratios = [mine / theirs for mine, theirs in zip(ours, stock, strict=True)]
    ratio = figure(f"ours / stock, {title}: {what}", ratios, "times")
    yield replace(ratio, at_least=at_least, at_most=at_most, note=note)


def figure(name: str, values: list[float], unit: str) -> Measure:
    """Return the figure of several rounds, or of the one there was."""
    if len(values) < 2:
        return Measure(name, values[0], unit)
    return Measure.of(name, summarise(values), unit)


def waited(title: str, rounds: Rounds, part: int) -> Iterator[Measure]:
    """Yield which share of a run its steps waited for map calls, and in which the GPU was idle.

    A host that waits while the GPU has work yet delays nothing by itself.
    """
    last = rounds[-1][1][part].stats
    note = (
        f"last round: {last['map_calls']:.0f} maps and {last['unmap_calls']:.0f} unmaps in "
        f"{last['map_seconds']:.3f} s, {last['driver_seconds']:.3f} of them in the driver and "
        f"{last['fence_seconds']:.3f} until kernels were done, "
        f"{last['blocks_placed']:.0f} blocks placed, {last.get('pages_copied', 0):.0f} copied"
    )
    steps = (
        f"last round: {last['waits']:.0f} steps waited {last['waited_seconds']:.3f} s, the longest "
        f"{last['longest_wait_seconds']:.3f} s, {last['exposed_seconds']:.3f} s with an idle GPU"
    )
    for what, name, said in (
        ("steps waited for map calls", "waited_seconds", note),
        ("the GPU was idle in such a wait", "exposed_seconds", steps),
    ):
        shares = [mine[part].stats[name] / mine[part].seconds for _, mine in rounds[1:]]
        share = figure(f"ours, {title}: {what}", shares, "of the run")
        yield replace(share, at_most=0.01, note=said)


def swapped(title: str, rounds: Rounds, part: int) -> Iterator[Measure]:
    """Yield how many requests ours copied to host memory and back, of those that it preempted."""
    counted = [mine[part].stats for _, mine in rounds[1:]]
    last = counted[-1]
    note = (
        f"last round: {last['swapped_in']:.0f} came back, {last['swap_dearer']:.0f} were cheaper "
        f"to compute, {last['swap_refused']:.0f} found no room; a token there and back "
        f"{1e6 * last['swap_token_seconds']:.1f} us, computed "
        f"{1e6 * last['compute_token_seconds']:.1f} us"
    )
    measure = figure(
        f"ours, {title}: swapped out", [each["swapped_out"] for each in counted], "requests"
    )
    yield replace(measure, note=note)
