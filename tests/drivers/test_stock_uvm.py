# SPDX-License-Identifier: Apache-2.0
"""The `stock-uvm` driver on the emulated NVIDIA machine: calls, failures, life and death."""

from __future__ import annotations

import ctypes
import errno
import gc
import os

import pytest
from nvidia_machine import (
    CHUNK,
    GPU_IS_LOST,
    INSUFFICIENT_RESOURCES,
    KB,
    MAP,
    NO_MEMORY,
    NOTHING,
    REGION,
    UNMAP,
    Calls,
    Space,
    held,
    start,
    writable,
)

from pyvattn import _native
from pyvattn.errors import ConfigError, DriverError, OutOfMemory

emulated_cuda, emulated_nvidia = _native.emulated_cuda, _native.emulated_nvidia

NAME = "stock-uvm-emulated"
PAGE = 64 * KB
PER_REGION = REGION // PAGE
# Calls that three_extents() takes: three pages', one of them over a border of chunks, and two
# regions' zeros; zeros for a part, for two parts and a region, for a region.
MAPS = 6
UNMAPS = 5


@pytest.fixture(autouse=True)
def _machine():
    """Start from an untouched machine; nothing may be left, nothing undefined done."""
    start()
    yield
    assert emulated_cuda.violations() == []


@pytest.fixture
def space():
    """Addresses and a slab; whatever the test did, all of it must be given back."""
    space = Space(NAME, PAGE)
    yield space
    space.give_back()
    assert held() == NOTHING


# --- what is asked of the driver ---


@pytest.mark.parametrize("device", [0, 1])
def test_the_gpu_is_found_by_uuid_and_not_by_number(device):
    """The emulated GPUs have other minors and instances than their CUDA ordinals."""
    space = Space(NAME, PAGE, device=device)
    free = [emulated_cuda.holdings()]
    assert free
    space.driver.map([space.entry(0)])
    space.write(0, b"here")
    assert space.read(0).startswith(b"here")
    space.driver.unmap([space.entry(0)])
    space.give_back()
    assert held() == NOTHING


@pytest.mark.parametrize("pages", [1, 5, PER_REGION, 3 * PER_REGION])
def test_an_extent_is_one_call_a_chunk_in_regions_that_were_used_before(space, pages):
    entry = space.entry(PER_REGION // 2, pages=pages)
    space.driver.map([entry])
    space.driver.unmap([entry])
    edges = [space.entry(place) for place in (0, PER_REGION // 2 + pages)]
    space.driver.map(edges)  # both ends lie in regions with small entries now
    calls = Calls(MAP, UNMAP)
    space.driver.map([entry])
    assert calls.made() == {MAP: space.chunks(PER_REGION // 2, pages), UNMAP: 0}
    space.driver.unmap([*edges, entry])


def test_the_first_page_of_a_region_costs_one_more_call(space):
    calls = Calls(MAP, UNMAP)
    space.driver.map([space.entry(0)])
    assert calls.made() == {MAP: 2, UNMAP: 0}
    space.driver.unmap([space.entry(0)])


def test_small_pages_have_small_entries_and_2m_pages_large_ones():
    for page, entry in ((PAGE, "by 64K"), (128 * KB, "by 64K"), (REGION, "by 2048K")):
        space = Space(NAME, page)
        mapped = space.entry(0, pages=4 * REGION // page)
        space.driver.map([mapped])
        lines = [line for line in writable() if line.startswith(hex(space.base))]
        assert [entry in line for line in lines] == [True]
        space.driver.unmap([mapped])
        space.give_back()
    assert held() == NOTHING


def test_what_is_not_mapped_reads_as_zeros_and_cannot_be_written(space):
    space.driver.map([space.entry(2, pages=3)])
    for place in range(2, 5):
        space.write(place, b"secret" * 10)
    assert space.read(1) == space.read(5) == space.read(PER_REGION) == bytes(64)
    space.driver.unmap([space.entry(2, pages=3)])
    assert space.zeros_everywhere()
    assert all("cuda" not in line for line in writable()), "CUDA's own memory can be reached"


def test_a_whole_region_goes_back_to_one_entry(space):
    entry = space.entry(0, pages=2 * PER_REGION)
    space.driver.map([entry])
    space.driver.unmap([entry])
    line = next(line for line in emulated_nvidia.mappings() if line.startswith(hex(space.base)))
    assert "by 2048K read-only" in line


def test_a_fresh_slab_is_zero_although_the_memory_was_not(space):
    space.driver.map([space.entry(0, pages=8 * PER_REGION)])
    assert space.zeros_everywhere()
    space.driver.unmap([space.entry(0, pages=8 * PER_REGION)])
    emulated_cuda.fail("cuMemsetD8Async", 1, 0)  # claims success and does nothing
    other = space.driver.allocate_slab(REGION)
    entry = _native.MapEntry(space.base, PAGE, other, 0)
    space.driver.map([entry])
    assert space.read(0) == b"\xff" * 64
    space.driver.unmap([entry])
    space.driver.free_slab(other)


def test_memory_is_taken_from_the_device_and_given_back():
    total = 4 << 30
    emulated_cuda.occupy(0, total - (64 << 20))
    space = Space(NAME, PAGE)
    with pytest.raises(OutOfMemory, match="NV_ERR_NO_MEMORY"):
        space.driver.allocate_slab(64 << 20)
    space.driver.free_slab(space.slabs[0])
    space.slabs[0] = space.driver.allocate_slab(space.bytes)
    space.give_back()
    assert held() == NOTHING


def test_two_drivers_in_one_process_do_not_see_each_other():
    first, second = Space(NAME, PAGE), Space(NAME, PAGE)
    for space, text in ((first, b"first"), (second, b"second")):
        space.driver.map([space.entry(0)])
        space.write(0, text)
    assert first.read(0).startswith(b"first")
    first.driver.unmap([first.entry(0)])
    first.give_back()
    assert second.read(0).startswith(b"second")
    second.driver.unmap([second.entry(0)])
    second.give_back()
    assert held() == NOTHING


# --- failures ---


@pytest.mark.parametrize("status", [NO_MEMORY, INSUFFICIENT_RESOURCES])
def test_out_of_memory_is_an_error_of_its_own(space, status):
    emulated_nvidia.fail("NV_ESC_RM_ALLOC", 1, status)
    with pytest.raises(OutOfMemory) as caught:
        space.driver.allocate_slab(REGION)
    assert caught.value.requested == REGION
    assert "NV_ERR_" in str(caught.value)


def test_an_ioctl_that_returns_an_errno_is_reported_by_its_name(space):
    emulated_nvidia.fail_call(MAP, 1, errno.EAGAIN)
    with pytest.raises(DriverError) as caught:
        space.driver.map([space.entry(0)])
    assert caught.value.status == "EAGAIN"
    assert space.zeros_everywhere()


def three_extents(space: Space) -> list[_native.MapEntry]:
    """A part of a region, a run over borders of regions, a whole region."""
    return [
        space.entry(0, pages=2),
        space.entry(PER_REGION - 1, pages=2 * PER_REGION, memory=9),
        space.entry(5 * PER_REGION, pages=PER_REGION, memory=2),
    ]


def test_the_failures_below_hit_every_call(space):
    calls = Calls(MAP)
    space.driver.map(three_extents(space))
    assert calls.made() == {MAP: MAPS}
    space.driver.unmap(three_extents(space))
    assert calls.made() == {MAP: MAPS + UNMAPS}


@pytest.mark.parametrize("nth", range(1, MAPS + 1))
def test_a_map_that_fails_in_the_middle_leaves_zeros(space, nth):
    batch = three_extents(space)
    emulated_nvidia.fail(MAP, nth, GPU_IS_LOST)
    with pytest.raises(DriverError) as caught:
        space.driver.map(batch)
    assert caught.value.status == "NV_ERR_GPU_IS_LOST"
    assert MAP in caught.value.operation
    assert writable() == []
    assert space.zeros_everywhere()
    space.driver.map(batch)
    space.write(PER_REGION, b"again")
    space.driver.unmap(batch)
    assert space.zeros_everywhere()


@pytest.mark.parametrize("nth", range(1, UNMAPS + 1))
def test_an_unmap_that_fails_in_the_middle_keeps_everything(space, nth):
    batch = three_extents(space)
    space.driver.map(batch)
    places = [0, 1, PER_REGION - 1, PER_REGION, 3 * PER_REGION - 2, 5 * PER_REGION]
    for place in places:
        space.write(place, b"place %d" % place)
    emulated_nvidia.fail(MAP, nth, GPU_IS_LOST)
    with pytest.raises(DriverError) as caught:
        space.driver.unmap(batch)
    assert caught.value.status == "NV_ERR_GPU_IS_LOST"
    for place in places:
        assert space.read(place).startswith(b"place %d" % place)
    space.driver.unmap(batch)
    assert space.zeros_everywhere()


@pytest.mark.parametrize("nth", range(1, 9))
def test_a_reservation_that_fails_leaves_nothing(nth):
    driver = _native.make_driver(NAME, PAGE)
    before = held()
    emulated_nvidia.fail(MAP, nth, GPU_IS_LOST)
    bytes_ = 8 * CHUNK
    with pytest.raises(DriverError):
        driver.reserve(bytes_, REGION)
    assert held() == before
    driver.release_reservation(driver.reserve(bytes_, REGION))
    assert held() == before


@pytest.mark.parametrize("function", ["cuMemAddressReserve", "cuMemMap", "cuMemSetAccess"])
@pytest.mark.parametrize("nth", [1, 2])
def test_a_reservation_that_cuda_refuses_leaves_nothing(function, nth):
    driver = _native.make_driver(NAME, PAGE)
    before = held()
    emulated_cuda.fail(function, nth, 2)
    failed = 0
    for _ in range(2):
        try:
            driver.release_reservation(driver.reserve(3 * CHUNK, REGION))
        except OutOfMemory as error:
            failed += function in str(error)
    assert failed == 1
    assert held() == before


@pytest.mark.parametrize("name", ["NV_ESC_RM_ALLOC", MAP, UNMAP])
def test_a_slab_that_fails_leaves_nothing(space, name):
    before = held()
    emulated_nvidia.fail(name, 1, GPU_IS_LOST)
    with pytest.raises(DriverError):
        space.driver.allocate_slab(REGION)
    assert held() == before


def test_a_slab_that_the_driver_will_not_free_is_kept(space):
    emulated_nvidia.fail("NV_ESC_RM_FREE", 1, GPU_IS_LOST)
    with pytest.raises(DriverError):
        space.driver.free_slab(space.slabs[0])
    space.driver.map([space.entry(0)])
    space.driver.unmap([space.entry(0)])


def test_a_roll_back_that_fails_closes_the_driver_for_good():
    space = Space(NAME, PAGE)
    emulated_nvidia.fail(MAP, 2, GPU_IS_LOST)  # the page, after the region's zeros
    emulated_nvidia.fail(MAP, 3, GPU_IS_LOST)  # the zeros in its place
    with pytest.raises(DriverError, match="GPU_IS_LOST"):
        space.driver.map([space.entry(0)])
    with pytest.raises(DriverError, match="close this cache"):
        space.driver.map([space.entry(1)])
    space.give_back()
    assert held() == NOTHING


# --- the process's life ---


def test_a_reset_context_is_reported_and_everything_can_be_closed():
    space = Space(NAME, PAGE)
    space.driver.map([space.entry(0)])
    emulated_cuda.reset_context(0)
    with pytest.raises(DriverError, match="reset or destroyed"):
        space.driver.map([space.entry(1)])
    space.driver.unmap([space.entry(0)])
    space.give_back()
    assert emulated_nvidia.holdings().clients == 0


def test_a_forked_child_cannot_touch_its_parents_memory():
    space = Space(NAME, PAGE)
    space.driver.map([space.entry(0)])
    space.write(0, b"parent")
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            refused = 0
            for call in (
                lambda: space.driver.map([space.entry(1)]),
                lambda: space.driver.unmap([space.entry(0)]),
                lambda: space.driver.allocate_slab(REGION),
                lambda: space.driver.free_slab(space.slabs[0]),
                lambda: space.driver.reserve(REGION, REGION),
                lambda: space.driver.release_reservation(space.base),
            ):
                try:
                    call()
                except Exception as error:
                    refused += "fork" in str(error)
            before = emulated_nvidia.calls("NV_ESC_RM_FREE")
            del space.driver
            gc.collect()
            refused += emulated_nvidia.calls("NV_ESC_RM_FREE") == before
            os.write(write, bytes([refused]))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 1) == bytes([7])
    assert space.read(0).startswith(b"parent")
    space.driver.unmap([space.entry(0)])
    space.give_back()
    assert held() == NOTHING


def test_a_driver_that_is_dropped_with_everything_mapped_gives_it_all_back():
    space = Space(NAME, PAGE)
    space.driver.map([space.entry(0, pages=40), space.entry(100, pages=3)])
    del space
    assert held() == NOTHING


def test_zeroing_waits_for_the_stream_it_is_told(space):
    space.driver.map([space.entry(0)])
    space.write(0, b"old")
    space.driver.zero([(space.base, PAGE)])
    assert ctypes.string_at(space.base, PAGE) == bytes(PAGE)
    space.driver.unmap([space.entry(0)])


def test_pages_that_it_does_not_have_are_refused():
    with pytest.raises(ConfigError, match="choose one of"):
        _native.make_driver(NAME, 32 * KB)
