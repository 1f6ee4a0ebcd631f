# SPDX-License-Identifier: Apache-2.0
"""The thread that gives while an engine is idle: it waits until it is asked, and ends."""

from __future__ import annotations

import queue
from threading import Event

import pytest

from pyvattn import LedgerError
from pyvattn.integrations.vllm import sharing_scheduler

PATIENCE = 60


class Neighbours:
    """What they say, one answer for each time that the donor waits for them."""

    def __init__(self):
        self._answers = queue.Queue()
        self.waits = queue.Queue()

    def answer(self, answer):
        self._answers.put(answer)

    def wait_asked(self, milliseconds):
        self.waits.put(milliseconds)
        answer = self._answers.get(timeout=PATIENCE)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def neighbours():
    return Neighbours()


@pytest.fixture
def given():
    return queue.Queue()


@pytest.fixture
def donor(neighbours, given):
    donor = sharing_scheduler._IdleDonor(lambda: given.put(True), neighbours.wait_asked)
    yield donor
    for _ in range(2):
        neighbours.answer(False)
    donor.end()


def test_it_gives_each_time_that_it_is_asked_and_not_otherwise(donor, neighbours, given):
    for answer in (False, True, False, True, False):
        neighbours.answer(answer)
    # It waits for a sixth answer.
    waited = [neighbours.waits.get(timeout=PATIENCE) for _ in range(6)]
    assert given.qsize() == 2
    # Each wait is long: it is woken, it does not look.
    assert min(waited) >= 100


def test_it_gives_no_more_once_the_ledger_is_lost(donor, neighbours, given):
    neighbours.answer(LedgerError("gone"))
    donor._thread.join(PATIENCE)
    assert not donor._thread.is_alive()
    assert given.empty()


def test_an_engine_that_ends_waits_for_what_is_given(neighbours):
    begun, go_on, done = Event(), Event(), Event()

    def give():
        begun.set()
        assert go_on.wait(PATIENCE)
        done.set()

    donor = sharing_scheduler._IdleDonor(give, neighbours.wait_asked)
    neighbours.answer(True)
    assert begun.wait(PATIENCE)
    go_on.set()
    neighbours.answer(False)
    donor.end()
    assert done.is_set()
