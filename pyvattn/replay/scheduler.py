# SPDX-License-Identifier: Apache-2.0
"""Continuous batching without a model: requests join, grow by a token a step, and leave.

Requests are admitted in order of arrival as long as the allocator has room for
their prompt. Where a step finds no memory, the youngest request gives its
memory back and waits at the head of the queue; it starts again with the tokens
that it had. All steps take the same simulated time.
"""

from __future__ import annotations

import time
from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from pyvattn.arguments import check_callable, check_type, is_number
from pyvattn.errors import ArgumentError, ConfigError, OutOfMemory
from pyvattn.replay.allocator import Allocator
from pyvattn.replay.result import Recorder, Result
from pyvattn.spec import CacheSpec
from pyvattn.text import shown
from pyvattn.traces import Request, Trace

DEFAULT_STEP_SECONDS = 0.025


@dataclass
class _Waiting:
    request: Request
    tokens: int
    preempted: bool = False


class _Batch:
    """The live requests, oldest first, as arrays that go to the allocator as they are."""

    def __init__(self) -> None:
        self.rows = array("q")
        self.lengths = array("q")
        self.requests: list[Request] = []

    def join(self, row: int, tokens: int, request: Request) -> None:
        self.rows.append(row)
        self.lengths.append(tokens)
        self.requests.append(request)

    def leave(self, index: int) -> int:
        del self.lengths[index], self.requests[index]
        return self.rows.pop(index)

    def grow(self) -> None:
        self.lengths = array("q", [length + 1 for length in self.lengths])

    def finished(self) -> list[int]:
        """Return the places of those that have all their tokens, last first."""
        return [
            index
            for index in range(len(self.rows) - 1, -1, -1)
            if self.lengths[index] >= self.requests[index].prompt + self.requests[index].generated
        ]


class _Replay:
    def __init__(
        self, trace: Trace, spec: CacheSpec, allocator: Allocator, step_seconds: float | None
    ) -> None:
        self.allocator = allocator
        self.token_bytes = spec.token_bytes
        fitting = [r for r in trace.requests if r.prompt + r.generated <= spec.max_tokens]
        self.refused = len(trace.requests) - len(fitting)
        self.queue = deque(_Waiting(request, request.prompt) for request in fitting)
        self.total = len(fitting)
        # With no time between arrivals every request is there from the start.
        self.saturated = step_seconds is None
        self.step_seconds = step_seconds or DEFAULT_STEP_SECONDS
        self.batch = _Batch()
        self.recorder = Recorder()
        self.clock = 0.0
        self.waited = 0.0
        self.preempted = 0
        self.done = 0

    def step(self) -> None:
        self.grow()
        self.admit()
        if not self.batch.rows:
            self.idle()
            return
        self.record()
        self.clock += self.step_seconds
        for index in self.batch.finished():
            self.allocator.release(self.batch.leave(index))
            self.done += 1

    def admit(self) -> None:
        while self.queue:
            head = self.queue[0]
            arrived = self.saturated or head.request.arrival <= self.clock
            if not arrived or not self.allocator.can_admit(head.tokens):
                return
            self.queue.popleft()
            if not self.saturated and not head.preempted:
                self.waited += self.clock - head.request.arrival
            row = self.allocator.admit(head.tokens)
            self.allocator.step(array("q", [row]), array("q", [head.tokens]))
            self.batch.join(row, head.tokens, head.request)

    def idle(self) -> None:
        """Move the clock to the next arrival, or find that its prompt can never fit."""
        if not self.queue:
            return
        head = self.queue[0]
        if not self.saturated and head.request.arrival > self.clock:
            self.clock = head.request.arrival
        else:
            self.queue.popleft()
            self.refused += 1
            self.total -= 1

    def grow(self) -> None:
        """Back one more token of every live request, with fewer of them if need be."""
        self.batch.grow()
        while self.batch.rows:
            try:
                self.allocator.step(self.batch.rows, self.batch.lengths)
                return
            except OutOfMemory:
                self.preempt_youngest()

    def preempt_youngest(self) -> None:
        tokens, request = self.batch.lengths[-1], self.batch.requests[-1]
        self.allocator.release(self.batch.leave(len(self.batch.rows) - 1))
        self.queue.appendleft(_Waiting(request, tokens, preempted=True))
        self.preempted += 1
        if not self.batch.rows:
            # Alone in all the memory there is, and still too long.
            self.queue.popleft()
            self.refused += 1
            self.total -= 1

    def record(self) -> None:
        held, mapped = self.allocator.memory()
        used = sum(self.batch.lengths) * self.token_bytes
        self.recorder.add(self.clock, len(self.batch.rows), used, held, mapped)

    def result(self, wall_seconds: float) -> Result:
        seen = self.recorder
        steps, live = max(seen.steps, 1), max(seen.live, 1)
        waste = (seen.held - seen.used) / live
        map_calls, unmap_calls = self.allocator.calls()
        return Result(
            label=self.allocator.label,
            requests=self.done,
            refused=self.refused,
            preempted=self.preempted,
            steps=seen.steps,
            seconds=self.clock,
            mean_wait=self.waited / max(self.done, 1),
            mean_live=seen.live / steps,
            peak_live=seen.peak_live,
            mean_used=seen.used / steps,
            mean_held=seen.held / steps,
            peak_held=seen.peak_held,
            mean_mapped=seen.mapped / steps,
            peak_mapped=seen.peak_mapped,
            waste_bytes=waste,
            waste_tokens=waste / self.token_bytes,
            map_calls=map_calls,
            unmap_calls=unmap_calls,
            mean_extent_bytes=self.allocator.mean_extent_bytes(),
            wall_seconds=wall_seconds,
            samples=tuple(seen.samples),
        )


def replay(
    trace: Trace,
    spec: CacheSpec,
    allocator: Allocator,
    *,
    step_seconds: float | None = DEFAULT_STEP_SECONDS,
    progress: Callable[[int], object] | None = None,
) -> Result:
    """Run ``trace`` through ``allocator`` and return what was found.

    ``step_seconds`` is the simulated time of a step; None leaves the arrival
    times aside, so that requests are always waiting. Requests that are longer
    than ``spec.max_tokens``, or than all memory, are refused and counted.
    ``progress`` is called with the number of requests that have ended, now and
    then. The allocator is left open.

    Raises :class:`~pyvattn.errors.ArgumentError` and :class:`~pyvattn.errors.ConfigError`.
    """
    check_type("trace", trace, Trace)
    check_type("spec", spec, CacheSpec)
    if not hasattr(allocator, "mean_extent_bytes"):
        raise ArgumentError(f"allocator={shown(allocator)}: pass an Allocator")
    check_callable("progress", progress)
    if step_seconds is not None and not (is_number(step_seconds) and step_seconds > 0):
        raise ConfigError(f"step time {shown(step_seconds)}: use a positive number of seconds")
    run = _Replay(trace, spec, allocator, step_seconds)
    began = time.perf_counter()
    reported = 0
    while run.done < run.total:
        run.step()
        if progress is not None and run.done - reported >= 100:
            reported = run.done
            progress(reported)
    if progress is not None:
        progress(run.done)
    return run.result(time.perf_counter() - began)
