# SPDX-License-Identifier: Apache-2.0
"""``bench transformers --steps``: the slowest steps of many, and what they did.

As many requests run as there are, and when one leaves another one joins. A step that decodes, and
runs no prompt, should take as long as the next. What it did besides is read off counters before
and after it. The engine reads a step's tokens once the next one is launched, so what one does may
be waited for in the next: both are looked at.
"""

from __future__ import annotations

import gc
import itertools
import math
import resource
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from pyvattn.bench.engines import Ours
from pyvattn.bench.report import Measure, Setup
from pyvattn.bench.serving import percentile
from pyvattn.errors import ConfigError

MAP, ZERO, BEHIND, COLLECT, CAPTURE, SWITCHED = (
    "map",
    "zero",
    "map in the background",
    "gc",
    "graph capture",
    "descheduled",
)
NOTHING = "none of these"
# Counted in seconds; of the others it counts that there were any.
_TIMED = (MAP, ZERO, BEHIND, COLLECT)
CAUSES = (*_TIMED, CAPTURE, SWITCHED, NOTHING)
# What p99 may be of p50, and from where on a step counts as slow.
SLOW = 1.1
_SHOWN = 20


@dataclass(frozen=True)
class Step:
    """One step: its seconds, whether it ran prompts, and what else it did, by :data:`CAUSES`."""

    seconds: float
    prompts: bool
    did: Mapping[str, float]

    def cause(self, usual: float) -> str:
        """Return what kept it longer than ``usual`` seconds.

        What took at least half of that time, the longest first; else what is not timed.
        """
        timed = {name: self.did.get(name, 0.0) for name in _TIMED}
        longest = max(timed, key=lambda name: timed[name])
        if timed[longest] >= (self.seconds - usual) / 2 > 0:
            return longest
        return next((name for name in (CAPTURE, SWITCHED) if self.did.get(name)), NOTHING)


class Counters:
    """What is counted beside steps, since ``watching`` began."""

    def __init__(self, ours: Ours) -> None:
        self._cache, self._engine = ours.cache, ours.engine
        self._collected, self._since = 0.0, 0.0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Time garbage collections until the end of the block."""
        gc.callbacks.append(self._on_collect)
        try:
            yield
        finally:
            gc.callbacks.remove(self._on_collect)

    def read(self) -> dict[str, float]:
        """Return every count, and the tokens of prompts as ``"prompts"``."""
        stats, batch = self._cache.stats(), self._engine._batch
        return {
            MAP: stats.map_seconds_blocking,
            ZERO: stats.zero_seconds,
            BEHIND: stats.map_seconds_hidden,
            COLLECT: self._collected,
            CAPTURE: batch.captures,
            SWITCHED: resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw,
            "prompts": batch.prefilled,
        }

    def _on_collect(self, phase: str, info: dict[str, int]) -> None:
        now = time.perf_counter()
        if phase == "start":
            self._since = now
        else:
            self._collected += now - self._since


def worst_steps(
    ours: Ours,
    prompts: Iterator[list[int]],
    requests: int,
    new_tokens: int,
    steps: int,
    *,
    gpu: bool,
    until: float = math.inf,
) -> Iterator[Measure | Setup]:
    """Yield p50, p99 and the worst of ``steps``, and what the slow ones did.

    None begins past ``until``, a time of ``perf_counter``. Raises
    :class:`~pyvattn.errors.ConfigError` where too few of them decode alone.
    """
    found = list(_run(ours, prompts, requests, new_tokens, steps, until))
    alone = decoding_alone(found)
    if len(alone) < 2:
        raise ConfigError(
            f"of {len(found)} steps {len(alone)} ran no prompts: raise --steps, --new-tokens or "
            "--seconds"
        )
    seconds = [step.seconds for step in alone]
    usual = statistics.median(seconds)
    slow = sorted(
        (step for step in alone if step.seconds > SLOW * usual), key=lambda step: -step.seconds
    )
    yield Setup(
        "worst_steps",
        {"ours": ours.note, "steps": [_shown(step, usual) for step in slow[:_SHOWN]]},
    )
    name, note = "a step that decodes alone", f"{len(alone)} of {len(found)} steps"
    p99 = percentile(seconds, 99)
    yield Measure(f"{name}, p50", 1e3 * usual, "ms", note=note)
    yield Measure(f"{name}, p99", 1e3 * p99, "ms")
    yield Measure(f"{name}, the worst", 1e3 * max(seconds), "ms", note=_why(slow[:1], usual))
    most = SLOW if gpu else None
    yield Measure(f"{name}, p99 / p50", p99 / usual, "times", at_most=most)
    causes = [step.cause(usual) for step in slow]
    for cause in CAUSES:
        yield Measure(f"{name}, over {SLOW:g} x p50: {cause}", causes.count(cause), "steps")
    others = [step.seconds for step in found if step.prompts]
    if len(others) > 1:
        for percent in (50, 99):
            value = 1e3 * percentile(others, percent)
            yield Measure(f"a step with prompts, p{percent}", value, "ms")


def decoding_alone(steps: Sequence[Step]) -> list[Step]:
    """Return the steps that ran no prompts and followed none, with what the one before did."""
    return [
        Step(step.seconds, False, {name: step.did[name] + before.did[name] for name in step.did})
        for before, step in itertools.pairwise(steps)
        if not (step.prompts or before.prompts)
    ]


def _run(
    ours: Ours,
    prompts: Iterator[list[int]],
    requests: int,
    new_tokens: int,
    steps: int,
    until: float,
) -> Iterator[Step]:
    """Yield so many steps, from the first on in which all requests run."""
    engine, counters = ours.engine, Counters(ours)
    # The first ones leave one after the other, as those that follow do.
    first = [
        engine.submit(next(prompts), max(1, new_tokens * (number + 1) // requests))
        for number in range(requests)
    ]
    while not all(request.started for request in first):
        _refill(engine, prompts, new_tokens, len(engine.step()))
    with counters.watching():
        before = counters.read()
        for _ in range(steps):
            began = time.perf_counter()
            if began > until:
                break
            finished = engine.step()
            seconds = time.perf_counter() - began
            after = counters.read()
            did = {name: after[name] - before[name] for name in after}
            before = after
            yield Step(seconds, did.pop("prompts") > 0, did)
            _refill(engine, prompts, new_tokens, len(finished))


def _refill(engine: Any, prompts: Iterator[list[int]], new_tokens: int, count: int) -> None:
    for prompt in itertools.islice(prompts, count):
        engine.submit(prompt, new_tokens)


def _shown(step: Step, usual: float) -> dict[str, object]:
    return {"cause": step.cause(usual), **asdict(step)}


def _why(slow: Sequence[Step], usual: float) -> str:
    return "".join(step.cause(usual) for step in slow)
