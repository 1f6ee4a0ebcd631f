# SPDX-License-Identifier: Apache-2.0
"""Every error that the core raises arrives in Python as the class that the
documentation names, with its attributes, and is caught by the built-in class too."""

from __future__ import annotations

import inspect
import multiprocessing
import os
import threading

import pytest

import pyvattn
from pyvattn import CacheSpec, KVCache, _native, errors

PAGE = 64 << 10


@pytest.fixture
def faulty():
    """A small cache, and the adaptor that makes its driver calls fail."""
    faults = _native.FaultAdaptor(_native.make_driver("host", PAGE))
    spec = CacheSpec(2, 4, 64, "float32", max_slots=2, max_tokens=1024)
    with KVCache.on_driver(spec, faults, layout="layer", memory="1MiB", background=False) as cache:
        yield cache, faults


@pytest.fixture
def cache(faulty):
    return faulty[0]


def test_out_of_memory_says_what_is_asked_free_and_reclaimable(cache):
    slot = cache.acquire()
    with pytest.raises(errors.OutOfMemory, match="resize") as caught:
        cache.step({slot: 1024})
    assert caught.value.requested == 64 * PAGE
    assert caught.value.free == 16 * PAGE
    assert caught.value.reclaimable == 0
    assert isinstance(caught.value, MemoryError)
    cache.step({slot: 10})


def test_driver_error_says_operation_address_size_and_status(faulty):
    cache, faults = faulty
    slot = cache.acquire()
    faults.fail_nth(0)
    with pytest.raises(errors.DriverError, match="allocate_slab") as caught:
        cache.step({slot: 10})
    assert caught.value.operation == "allocate_slab"
    # A slab has a page in each of the four arenas for every block.
    assert caught.value.size > 0
    assert caught.value.size % (4 * PAGE) == 0
    # One slab, then the batch that maps a block of it.
    faults.fail_nth(1)
    with pytest.raises(errors.DriverError, match="map") as caught:
        cache.step({slot: 10})
    assert caught.value.operation == "map"
    assert caught.value.address > 0
    assert caught.value.address % PAGE == 0
    assert caught.value.status == "injected"
    assert isinstance(caught.value, RuntimeError)


def test_driver_out_of_memory_outside_the_pool():
    limited = _native.LimitAdaptor(_native.make_driver("host", PAGE), _native.MemoryLimit(PAGE))
    with pytest.raises(errors.OutOfMemory, match="memory limit") as caught:
        limited.allocate_slab(2 * PAGE)
    assert caught.value.requested == 2 * PAGE


def test_slot_error(cache):
    slot = cache.acquire()
    cache.release(slot)
    with pytest.raises(errors.SlotError, match=f"slot {slot.index} was released") as caught:
        cache.step({slot: 1})
    assert isinstance(caught.value, ValueError)


def test_length_error(cache):
    with pytest.raises(errors.LengthError, match=r"1025.*0\.\.1024") as caught:
        cache.acquire(1025)
    assert isinstance(caught.value, errors.SlotError)


def test_out_of_slots(cache):
    slots = [cache.acquire(), cache.acquire()]
    with pytest.raises(errors.OutOfSlots, match=f"all {len(slots)} slots are live"):
        cache.acquire()


def test_limit_error(cache):
    cache.step({cache.acquire(): 200})
    with pytest.raises(errors.LimitError, match="live slots hold") as caught:
        cache.resize(PAGE)
    assert isinstance(caught.value, ValueError)


def test_closed_error(cache):
    cache.close()
    with pytest.raises(errors.ClosedError, match="closed") as caught:
        cache.acquire()
    assert isinstance(caught.value, RuntimeError)


def test_busy_error():
    """Two threads step until one meets the other inside."""
    spec = CacheSpec(2, 4, 64, "float32", max_slots=256, max_tokens=64)
    with KVCache(spec, device="cpu", memory="64MiB", page_size="64K") as cache:
        lengths = {cache.acquire(): 1 for _ in range(256)}
        caught: list[errors.BusyError] = []

        def step_until_somebody_was_busy() -> None:
            while not caught:
                try:
                    cache.step(lengths)
                except errors.BusyError as error:
                    caught.append(error)

        threads = [threading.Thread(target=step_until_somebody_was_busy) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert isinstance(caught[0], RuntimeError)
    assert "two threads" in str(caught[0])


def _use_in_child(cache, pipe):
    try:
        cache.acquire()
    except errors.ForkError as error:
        pipe.send(str(error))
    finally:
        pipe.close()
        os._exit(0)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fork_error(cache):
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=_use_in_child, args=(cache, theirs))
    child.start()
    theirs.close()
    assert "belongs to the parent process" in ours.recv()
    child.join()


def test_config_error():
    with pytest.raises(errors.ConfigError, match=r"unknown driver 'cuda'.*host") as caught:
        _native.make_driver("cuda", PAGE)
    assert isinstance(caught.value, ValueError)


def test_driver_unavailable():
    """A driver release whose ioctls are not known."""
    emulated = _native.emulated_nvidia
    settings = emulated.Settings()
    settings.release = "999.10.01"
    emulated.reset(settings)
    try:
        with pytest.raises(errors.DriverUnavailable, match=r"999\.10\.01") as caught:
            _native.driver_capabilities("stock-uvm-emulated")
    finally:
        emulated.reset()
    assert isinstance(caught.value, RuntimeError)


def test_every_error_is_an_error_and_has_a_doc():
    classes = [
        value
        for _, value in inspect.getmembers(errors, inspect.isclass)
        if value.__module__ == "pyvattn.errors"
    ]
    assert {each.__name__ for each in classes} == set(errors.__all__)
    for each in classes:
        assert issubclass(each, pyvattn.Error | Warning)
        assert each.__doc__
        assert getattr(pyvattn, each.__name__) is each
        assert each.__name__ in pyvattn.__all__
