# SPDX-License-Identifier: Apache-2.0
"""The thread that maps while vLLM prepares a step."""

from __future__ import annotations

from concurrent.futures import Future
from threading import Event

import pytest

from pyvattn import DriverError
from pyvattn.integrations.vllm import flusher as flusher_module
from pyvattn.integrations.vllm.flusher import Flusher

SECONDS = 30  # until a test gives up on a thread that does not come


class Calls:
    """Stands for ``flush``: each call waits until it may go on."""

    def __init__(self):
        self.begun = [Event() for _ in range(3)]
        self.may_end = [Event() for _ in range(3)]
        self.count = 0

    def __call__(self):
        call, self.count = self.count, self.count + 1
        self.begun[call].set()
        assert self.may_end[call].wait(SECONDS)


@pytest.fixture
def calls():
    calls = Calls()
    yield calls
    for may_end in calls.may_end:
        may_end.set()


def test_what_is_staged_during_a_flush_is_mapped_without_waiting_for_the_step(calls):
    flusher = Flusher(calls, background=True)
    flusher.staged()
    assert calls.begun[0].wait(SECONDS)
    flusher.staged()
    calls.may_end[0].set()
    assert calls.begun[1].wait(SECONDS), "the thread left it to join()"
    calls.may_end[1].set()
    flusher.join()
    assert calls.count == 2
    flusher.close()


def test_join_waits_for_all_that_was_staged(calls):
    flusher = Flusher(calls, background=True)
    flusher.staged()
    assert calls.begun[0].wait(SECONDS)
    flusher.staged()
    for may_end in calls.may_end:
        may_end.set()
    flusher.join()
    assert calls.count == 2
    flusher.join()
    assert calls.count == 2, "nothing was staged since"
    flusher.close()


class Pending(Future):
    def result(self, timeout=None):
        raise AssertionError("the step waits for a thread that has not begun")


class BusyThreads:
    """Stands for a pool whose threads do not get the interpreter."""

    def __init__(self, *_):
        self.submitted = []

    def submit(self, *_):
        self.submitted.append(Pending())
        return self.submitted[-1]

    def shutdown(self):
        assert all(future.cancelled() for future in self.submitted)


def test_join_does_not_wait_for_a_thread_that_has_not_begun(monkeypatch):
    monkeypatch.setattr(flusher_module, "ThreadPoolExecutor", BusyThreads)
    done = []
    flusher = Flusher(lambda: done.append(True), background=True)
    for steps in (1, 2):
        flusher.staged()
        flusher.join()
        assert len(done) == steps
    flusher.close()


@pytest.mark.parametrize("background", [True, False])
def test_what_could_not_be_mapped_is_tried_at_the_next_join(background):
    failures = [DriverError("no memory")] * 2
    done = []

    def flush():
        if failures:
            raise failures.pop()
        done.append(True)

    flusher = Flusher(flush, background=background)
    flusher.staged()
    with pytest.raises(DriverError, match="no memory"):
        flusher.join()
    flusher.join()
    assert (done, flusher.retries) == ([True], 1)
    flusher.close()
