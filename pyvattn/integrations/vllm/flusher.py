"""Maps what is staged while vLLM prepares the step that needs it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from time import perf_counter

from pyvattn.errors import DriverError

__all__ = ["Flusher"]

_log = logging.getLogger("vllm.pyvattn")


class Flusher:
    """Calls ``flush`` from a thread of its own, or in :meth:`join` where there is none.

    ``flush_seconds`` were spent in it, ``waited_seconds`` by whoever joined, which is what
    a step takes longer.
    """

    def __init__(self, flush: Callable[[], None], *, background: bool) -> None:
        self._flush = flush
        self._thread = ThreadPoolExecutor(1, "pyvattn-vllm") if background else None
        self._running: Future[None] | None = None
        self._staged = False
        self.flush_seconds = 0.0
        self.waited_seconds = 0.0
        self.retries = 0

    def staged(self) -> None:
        """Something is to be mapped. Where nothing is being mapped, begin."""
        if self._running is None and self._thread is not None:
            self._running = self._thread.submit(self._carry_out)
        else:
            self._staged = True

    def join(self) -> None:
        """Return once everything staged is mapped; raises what ``flush`` raises."""
        if self._running is None and not self._staged:
            return
        started = perf_counter()
        try:
            running, self._running = self._running, None
            if running is not None:
                running.result()
            if self._staged:
                self._carry_out()
                self._staged = False
        finally:
            self.waited_seconds += perf_counter() - started

    def close(self) -> None:
        """End the thread."""
        if self._thread is not None:
            self._thread.shutdown()

    def _carry_out(self) -> None:
        started = perf_counter()
        try:
            self._flush()
        except DriverError as error:
            # Nothing has changed, and what was staged still is.
            _log.warning("mapping is tried once more: %s", error)
            self.retries += 1
            self._flush()
        finally:
            self.flush_seconds += perf_counter() - started
