# SPDX-License-Identifier: Apache-2.0
"""What a scheduler of vLLM's does for those that it shares memory with."""

from __future__ import annotations

import logging
from collections.abc import Callable
from threading import Event, RLock, Thread
from typing import Any

from pyvattn.errors import Error
from pyvattn.integrations.vllm.lease import memory_of, shares
from pyvattn.integrations.vllm.supply import Supply

__all__ = ["SharingScheduler"]

# Between two looks while neighbours ask for what running requests hold.
_ROUND_S = 0.005
# How long a thread that is to end may take to see it.
_WAIT_MS = 100

_log = logging.getLogger("vllm.pyvattn")


class SharingScheduler:
    """Mixed into vLLM's scheduler: gives and takes before each step.

    Without requests there are no steps: a thread gives then. The lock keeps it from blocks
    while vLLM is at them.
    """

    shares_memory = True
    pyvattn_supply: Supply | None = None

    def pyvattn_join(self) -> None:
        """Begin, where the engine's memory is shared."""
        scheduler: Any = self
        self._pyvattn_lock = RLock()
        if not shares(scheduler.vllm_config):
            return
        memory = memory_of(scheduler.vllm_config)
        self.pyvattn_supply = Supply(self, memory)
        memory.give = self._give_where_asked
        self._pyvattn_donor = _IdleDonor(self._give_where_idle, self.pyvattn_supply.wait_asked)

    def schedule(self, *arguments: Any, **options: Any) -> Any:
        """Settle with the neighbours, and schedule a step with the blocks that have memory."""
        scheduler: Any = self
        with self._pyvattn_lock:
            if self.pyvattn_supply is None or not self.pyvattn_supply.balance():
                return super().schedule(*arguments, **options)  # type: ignore[misc]
            # What was preempted does not come back in the same step.
            most = scheduler.max_num_running_reqs
            scheduler.max_num_running_reqs = len(scheduler.running)
            try:
                return super().schedule(*arguments, **options)  # type: ignore[misc]
            finally:
                scheduler.max_num_running_reqs = most

    def update_from_output(self, *arguments: Any, **options: Any) -> Any:
        """Let vLLM free the blocks of requests that ended."""
        with self._pyvattn_lock:
            return super().update_from_output(*arguments, **options)  # type: ignore[misc]

    def finish_requests(self, *arguments: Any, **options: Any) -> Any:
        """Let vLLM free the blocks of requests that were aborted."""
        with self._pyvattn_lock:
            return super().finish_requests(*arguments, **options)  # type: ignore[misc]

    def reset_prefix_cache(self, *arguments: Any, **options: Any) -> Any:
        """Let vLLM forget what free blocks hold."""
        with self._pyvattn_lock:
            return super().reset_prefix_cache(*arguments, **options)  # type: ignore[misc]

    def shutdown(self) -> None:
        """End the thread, and what vLLM ends."""
        if self.pyvattn_supply is not None:
            self._pyvattn_donor.end()
        super().shutdown()  # type: ignore[misc]

    def _give_where_asked(self) -> None:
        with self._pyvattn_lock:
            if self.pyvattn_supply is not None:
                self.pyvattn_supply.give()

    def _give_where_idle(self) -> None:
        scheduler: Any = self
        with self._pyvattn_lock:
            if self.pyvattn_supply is not None and not scheduler.has_requests():
                self.pyvattn_supply.give()


class _IdleDonor:
    """Gives in a thread of its own whenever neighbours ask.

    ``wait_asked`` waits for that so many milliseconds, and says whether they do.
    """

    def __init__(self, give: Callable[[], None], wait_asked: Callable[[int], bool]) -> None:
        self._give = give
        self._wait_asked = wait_asked
        self._ended = Event()
        self._thread = Thread(target=self._run, name="pyvattn-donor", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Return once the thread has ended."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                if not self._wait_asked(_WAIT_MS):
                    continue
                self._give()
            except Error as error:
                # The ledger is lost or the worker has shut down: nothing can be given any more.
                _log.info("pyvattn: gives nothing more while idle: %s", error)
                return
            self._ended.wait(_ROUND_S)
