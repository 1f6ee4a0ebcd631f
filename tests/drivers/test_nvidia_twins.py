# SPDX-License-Identifier: Apache-2.0
"""What `patched` and `stock-uvm` have in common, on the emulated NVIDIA machine."""

from __future__ import annotations

import ctypes
import errno

import pytest
from nvidia_machine import (
    CHUNK,
    GPU_IS_LOST,
    KB,
    MAP,
    NOTHING,
    REGION,
    UNMAP,
    Space,
    held,
    start,
)

from pyvattn import _native
from pyvattn.errors import DriverError, DriverUnavailable

emulated_cuda, emulated_nvidia = _native.emulated_cuda, _native.emulated_nvidia

PAGE = 64 * KB
NAMES = ("patched-emulated", "stock-uvm-emulated")
# The ioctls that each makes as it starts.
STARTS = [
    *((NAMES[0], call) for call in ("UVM_VATTN_QUERY", "UVM_VATTN_ALLOC", UNMAP)),
    *(
        (NAMES[1], call)
        for call in ("NV_ESC_REGISTER_FD", "NV_ESC_RM_ALLOC", "NV_ESC_RM_CONTROL", MAP, UNMAP)
    ),
]


@pytest.fixture(autouse=True)
def _machine():
    start()
    yield
    assert emulated_cuda.violations() == []


@pytest.mark.parametrize("name", NAMES)
def test_no_call_goes_from_one_reservation_into_the_next(name):
    """Reservations may lie side by side; here they do."""
    space = Space(name, PAGE, regions=2)
    page = space.page
    first = space.driver.reserve(2 * space.bytes, REGION)
    second = space.driver.reserve(2 * space.bytes, REGION)
    assert second == first + 2 * space.bytes
    batch = [
        _native.MapEntry(second - page, page, space.slabs[0], 0),
        _native.MapEntry(second, page, space.slabs[0], page),
    ]
    space.driver.map(batch)
    space.driver.zero([(second - page, page), (second, page)])
    space.driver.unmap(batch)
    for address in (first, second):
        space.driver.release_reservation(address)
    space.give_back()
    assert held() == NOTHING


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_release_that_fails_leaves_the_reservation_as_it_was(name, nth):
    driver = _native.make_driver(name, PAGE)
    before = held()
    base = driver.reserve(3 * CHUNK, REGION)
    emulated_nvidia.fail(UNMAP, nth, GPU_IS_LOST)
    with pytest.raises(DriverError, match="release_reservation"):
        driver.release_reservation(base)
    assert all(
        ctypes.string_at(base + place, 64) == bytes(64) for place in range(0, 3 * CHUNK, REGION)
    )
    driver.release_reservation(base)
    assert held() == before


@pytest.mark.parametrize(("name", "call"), STARTS)
def test_a_start_that_fails_at_any_call_leaves_nothing(name, call):
    nth, failures = 1, 0
    while True:
        start()
        emulated_nvidia.fail_call(call, nth, errno.EIO)
        try:
            driver = _native.make_driver(name, PAGE)
        except (DriverError, DriverUnavailable):
            failures += 1
        else:
            if emulated_nvidia.calls(call) < nth:
                break
            del driver  # the watcher refused the probe, as it always does
        assert held() == NOTHING
        nth += 1
    assert failures > 0
