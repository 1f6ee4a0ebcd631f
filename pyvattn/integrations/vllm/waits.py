# SPDX-License-Identifier: Apache-2.0
"""How long steps waited for maps, and how much of it the GPU had nothing to do.

A host that waits while the GPU is busy with what was launched before costs nothing by itself. So
the GPU's clock is read as well: an event in front of the wait and one behind it are as far apart
as the GPU was idle between them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any, Protocol

__all__ = ["Event", "Waits"]


class Event(Protocol):
    """What is needed of ``torch.cuda.Event(enable_timing=True)``."""

    def record(self) -> None:
        """Record it on the current stream."""

    def query(self) -> bool:
        """Return whether the device has come so far."""

    def synchronize(self) -> None:
        """Wait until it has."""

    def elapsed_time(self, later: Any, /) -> float:
        """Return how many milliseconds a later event, which has passed, came after this one."""


class Waits:
    """Counts and times the waits of one thread.

    ``make_event``: of the device whose kernels are launched by that thread; without it a device is
    taken to be idle whenever the host waits, as a CPU is.
    """

    def __init__(self, make_event: Callable[[], Event] | None = None) -> None:
        self._make_event = make_event
        self._spare: list[Event] = []
        # The events around each wait, and its seconds: the device may not have passed them yet.
        self._running: deque[tuple[Event, Event, float]] = deque()
        self._count = 0
        self._seconds = self._exposed = self._longest = 0.0

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Time what is waited for meanwhile."""
        before = self._record()
        began = perf_counter()
        try:
            yield
        finally:
            seconds = perf_counter() - began
            self._count += 1
            self._seconds += seconds
            self._longest = max(self._longest, seconds)
            after = self._record()
            if before is None or after is None:
                self._exposed += seconds
            else:
                self._running.append((before, after, seconds))
                while self._running and self._running[0][1].query():
                    self._settle()

    def stats(self) -> dict[str, int | float]:
        """Return ``waits``, and their ``waited_seconds``, ``exposed_seconds`` and the longest.

        ``exposed_seconds`` are those in which the device had done all that was launched before; it
        is waited for.
        """
        while self._running:
            self._running[0][1].synchronize()
            self._settle()
        return {
            "waits": self._count,
            "waited_seconds": self._seconds,
            "exposed_seconds": self._exposed,
            "longest_wait_seconds": self._longest,
        }

    def reset(self) -> None:
        """Count from here on."""
        while self._running:
            self._spare += self._running.popleft()[:2]
        self._count = 0
        self._seconds = self._exposed = self._longest = 0.0

    def _record(self) -> Event | None:
        if self._make_event is None:
            return None
        event = self._spare.pop() if self._spare else self._make_event()
        event.record()
        return event

    def _settle(self) -> None:
        before, after, seconds = self._running.popleft()
        # An idle device takes some microseconds from one event to the next.
        self._exposed += min(seconds, before.elapsed_time(after) / 1e3)
        self._spare += before, after
