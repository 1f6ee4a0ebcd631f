# SPDX-License-Identifier: Apache-2.0
"""Maps what is staged while vLLM prepares the step that needs it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from time import perf_counter

from pyvattn.errors import DriverError

__all__ = ["Flusher"]

_log = logging.getLogger("vllm.pyvattn")


class Flusher:
    """Calls ``flush`` from a thread of its own, or in :meth:`join` where that has not begun.

    :meth:`staged`, :meth:`join` and :meth:`close` are for one thread, vLLM's.
    ``flush_seconds`` went into ``flush``; ``waited_seconds`` is what :meth:`join` took, and
    the step with it.
    """

    def __init__(self, flush: Callable[[], None], *, background: bool) -> None:
        self._flush = flush
        self._thread = ThreadPoolExecutor(1, "pyvattn-vllm") if background else None
        self._running: Future[None] | None = None
        # Both belong to the lock: the thread ends only where nothing was staged meanwhile.
        self._lock = Lock()
        self._is_staged = False
        self._is_flushing = False
        self.flush_seconds = 0.0
        self.waited_seconds = 0.0
        self.retries = 0

    def staged(self) -> None:
        """Something is to be mapped: the thread begins, or goes on once it has done the rest."""
        with self._lock:
            self._is_staged = True
            if self._thread is None or self._is_flushing:
                return
            self._is_flushing = True
        self._running = self._thread.submit(self._flush_all)

    def join(self) -> None:
        """Return once everything staged is mapped; raises what ``flush`` raises."""
        if self._running is None and not self._is_staged:
            return
        started = perf_counter()
        try:
            running, self._running = self._running, None
            # A thread that has not begun waits for the interpreter, up to 5 ms beside other
            # threads: what it was to do is sooner done here.
            if running is None or running.cancel():
                self._flush_all()
            else:
                running.result()
        finally:
            self.waited_seconds += perf_counter() - started

    def close(self) -> None:
        """End the thread."""
        if self._thread is not None:
            self._thread.shutdown()

    def _flush_all(self) -> None:
        try:
            while self._take():
                self._carry_out()
        except BaseException:
            # What was staged still is: the next join() tries again.
            with self._lock:
                self._is_staged = True
                self._is_flushing = False
            raise

    def _take(self) -> bool:
        with self._lock:
            taken, self._is_staged = self._is_staged, False
            self._is_flushing = taken
            return taken

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
