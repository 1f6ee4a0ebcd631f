# SPDX-License-Identifier: Apache-2.0
"""Slots whose object is gone although nobody released them."""

from __future__ import annotations

from array import array

import pytest
from checked_cache import small_spec

from pyvattn import ClosedError, KVCache, OutOfMemory


@pytest.fixture
def cache():
    with KVCache(small_spec(max_slots=2), device="cpu", memory="16MiB") as cache:
        yield cache


def test_live_slots_are_listed_with_their_tokens(cache):
    a, b = cache.acquire(), cache.acquire()
    cache.step({b: 70})
    assert cache.live_slots() == {a: 0, b: 70}
    cache.release(a)
    assert cache.live_slots() == {b: 70}


def test_a_slot_dropped_before_its_first_step_is_released(cache):
    """As where Ctrl-C comes between acquire() and the assignment."""
    for _ in range(10):
        cache.acquire()
    kept = cache.acquire()
    assert cache.can_admit(1)
    assert len(cache.live_slots()) == 1
    assert kept in cache.live_slots()


def test_a_slot_dropped_with_tokens_is_reported_once_and_can_be_released(cache):
    kept = cache.acquire()
    cache.step({kept: 5, cache.acquire(): 100})
    row = 1 - kept.index
    with pytest.warns(ResourceWarning, match=rf"Slot\({row}\) dropped.*live_slots\(\)"):
        cache.can_admit(1)
    assert not cache.can_admit(1)
    lost = [slot for slot in cache.live_slots() if slot is not kept]
    assert [(slot.index, cache.length(slot)) for slot in lost] == [(row, 100)]
    cache.release(lost[0])
    del lost
    assert cache.acquire().index == row


def test_a_step_back_to_nothing_does_not_make_a_slot_empty(cache):
    """Kernels may still read what it had."""
    slot = cache.acquire()
    cache.step({slot: 100})
    cache.step({slot: 0})
    del slot
    with pytest.warns(ResourceWarning, match="dropped"):
        assert cache.can_admit(1)
    assert len(cache.live_slots()) == 1


@pytest.mark.parametrize("how", ["step", "try_step", "step_array", "admit"])
def test_a_step_that_runs_out_of_memory_names_the_slots_that_hold_it(how):
    with KVCache(small_spec(max_slots=2), device="cpu", memory="6MiB") as cache:
        kept = cache.acquire()
        cache.step({cache.acquire(): 1000})
        calls = {
            "step": lambda: cache.step({kept: 1000}),
            "try_step": lambda: cache.try_step({kept: 1000}),
            "step_array": lambda: cache.step_array(array("q", [kept.index]), array("q", [1000])),
        }
        if how == "admit":
            cache.release(kept)
            calls["admit"] = lambda: cache.admit(1000)
        with pytest.warns(ResourceWarning, match=r"Slot\(\d\) dropped"), pytest.raises(OutOfMemory):
            calls[how]()
        for slot in list(cache.live_slots()):
            cache.release(slot)


def test_closing_names_the_slots_that_were_dropped(cache):
    cache.step({cache.acquire(): 100})
    with pytest.warns(ResourceWarning, match=r"Slot\(\d\) dropped"):
        cache.close()


def test_closing_twice_or_after_a_clean_run_says_nothing(cache, recwarn):
    slot = cache.acquire()
    cache.step({slot: 100})
    cache.close()
    cache.close()
    assert not recwarn


def test_a_released_slot_may_go(cache, recwarn):
    for _ in range(5):
        slot = cache.acquire()
        cache.step({slot: 10})
        cache.release(slot)
        del slot
    cache.acquire()
    assert not recwarn


def test_a_slot_may_outlive_its_cache(recwarn):
    cache = KVCache(small_spec(), device="cpu", memory="16MiB")
    slot = cache.acquire()
    cache.step({slot: 10})
    cache.close()
    with pytest.raises(ClosedError):
        cache.live_slots()
    del cache, slot
    assert not recwarn
