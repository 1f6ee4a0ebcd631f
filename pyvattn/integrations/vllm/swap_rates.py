# SPDX-License-Identifier: Apache-2.0
"""What it takes to copy a preempted request's tokens, and to compute them anew."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

from pyvattn.integrations.vllm.waits import Event

__all__ = ["Rates", "StepClock"]


@dataclass(frozen=True)
class Rates:
    """Seconds a token takes, as measured; None where nothing has been yet.

    ``copying``: to host memory and back. ``computing``: in the steps that ran most tokens, so that
    what a step takes whatever it runs is spread as thin as it gets.
    """

    copying: float | None = None
    computing: float | None = None

    @property
    def copying_is_cheaper(self) -> bool:
        """Whether it is, as far as is known."""
        if self.copying is None or self.computing is None:
            return True
        return self.copying < self.computing

    def slower(self, other: Rates) -> Rates:
        """Return what a step takes that waits for two workers."""
        return Rates(_longer(self.copying, other.copying), _longer(self.computing, other.computing))


def _longer(one: float | None, other: float | None) -> float | None:
    return max((each for each in (one, other) if each is not None), default=None)


class StepClock:
    """Times steps of more tokens than half of what the largest had: few of those that decode.

    ``make_event``: of the device whose kernels the calling thread launches; without it a step is
    done when it ends, as on a CPU.
    """

    def __init__(self, make_event: Callable[[], Event] | None = None) -> None:
        self._make_event = make_event
        self._largest = self._tokens = 0
        self._before: Event | None = None
        self._began = 0.0
        # Steps that the device may not have passed yet: events around each, and its tokens.
        self._running: deque[tuple[Event, Event, int]] = deque()
        self._fastest: float | None = None

    def begin(self, tokens: int) -> None:
        """A step of so many tokens is launched from here on."""
        self._tokens = tokens if 2 * tokens > self._largest else 0
        if self._tokens:
            self._largest = max(self._largest, tokens)
            self._before = self._record()
            self._began = perf_counter()

    def end(self) -> None:
        """All of it is launched."""
        tokens, self._tokens = self._tokens, 0
        if not tokens:
            return
        after = self._record()
        if self._before is None or after is None:
            self._note(perf_counter() - self._began, tokens)
        else:
            self._running.append((self._before, after, tokens))

    def token_seconds(self) -> float | None:
        """Return seconds a token in the fastest of the steps that are done, without waiting."""
        while self._running and self._running[0][1].query():
            before, after, tokens = self._running.popleft()
            self._note(before.elapsed_time(after) / 1e3, tokens)
        return self._fastest

    def _note(self, seconds: float, tokens: int) -> None:
        each = seconds / tokens
        self._fastest = each if self._fastest is None else min(each, self._fastest)

    def _record(self) -> Event | None:
        if self._make_event is None:
            return None
        event = self._make_event()
        event.record()
        return event
