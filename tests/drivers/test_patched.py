# SPDX-License-Identifier: Apache-2.0
"""The `patched` driver and the detection of the patch, on the emulated NVIDIA machine."""

from __future__ import annotations

import errno

import pytest
from nvidia_machine import (
    CHUNK,
    GPU_IS_LOST,
    KB,
    NO_MEMORY,
    NOTHING,
    REGION,
    Calls,
    Space,
    held,
    start,
    writable,
)

from pyvattn import _native
from pyvattn.errors import DriverError, DriverUnavailable, OutOfMemory

emulated_cuda, emulated_nvidia = _native.emulated_cuda, _native.emulated_nvidia

NAME = "patched-emulated"
PAGE = 64 * KB
PER_REGION = REGION // PAGE
MAP, UNMAP, ALLOC = "UVM_VATTN_MAP", "UVM_VATTN_UNMAP", "UVM_VATTN_ALLOC"
# Regions that are given small entries ahead of the last page.
AHEAD = 4


@pytest.fixture(autouse=True)
def _machine():
    start()
    yield
    assert emulated_cuda.violations() == []


@pytest.fixture
def space():
    space = Space(NAME, PAGE, regions=12)
    yield space
    space.give_back()
    assert held() == NOTHING


# --- detection ---


def test_a_patched_module_is_found_without_cuda():
    query = _native.emulated_nvidia.query_patch()
    assert (query.usable, query.reason, query.version) == (True, "", 1)
    assert query.page_sizes == [64 * KB << i for i in range(6)]
    assert emulated_cuda.calls("cuInit") == 0
    assert held() == NOTHING


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"patched": False}, "not patched"),
        ({"patched": False, "sysfs": False}, "not patched"),
        ({"patch_version": 2}, "version 2 of the interface, this pyvattn version 1"),
        ({"missing_nodes": ["/dev/nvidia-uvm"]}, "ENOENT"),
        ({"forbidden_nodes": ["/dev/nvidia-uvm"]}, "EACCES"),
    ],
)
def test_detection_says_why_it_is_not_usable_and_raises_nothing(settings, reason):
    start(**settings)
    query = _native.emulated_nvidia.query_patch()
    assert not query.usable
    assert reason in query.reason
    with pytest.raises(DriverUnavailable, match="cumem"):
        _native.driver_capabilities(NAME)
    assert held() == NOTHING


def test_a_gpu_that_the_module_does_not_serve_shows_when_it_is_opened():
    """The module can be asked about a GPU only where CUDA has opened it."""
    start(confidential=True)
    assert _native.emulated_nvidia.query_patch().usable
    with pytest.raises(DriverUnavailable, match=r"does not work on this GPU.*cumem"):
        _native.make_driver(NAME, PAGE)
    assert held() == NOTHING


def test_a_stock_module_is_not_asked_what_it_would_note_in_the_kernel_log():
    start(patched=False)
    assert not _native.emulated_nvidia.query_patch().usable
    assert emulated_nvidia.calls("UVM_VATTN_QUERY") == 0


@pytest.mark.parametrize("error", [errno.EINVAL, errno.ENOSYS, errno.ENOTTY, errno.EAGAIN])
def test_detection_survives_whatever_the_query_answers(error):
    emulated_nvidia.fail_call("UVM_VATTN_QUERY", 1, error)
    query = _native.emulated_nvidia.query_patch()
    assert not query.usable
    assert query.reason


def test_detection_on_this_very_machine_raises_nothing():
    query = _native.query_patch()
    assert query.usable or query.reason


def test_it_needs_no_known_driver_release():
    settings = emulated_nvidia.Settings()
    settings.release = "599.1.1"
    emulated_nvidia.reset(settings)
    space = Space(NAME, PAGE)
    space.driver.map([space.entry(0)])
    space.driver.unmap([space.entry(0)])
    space.give_back()


# --- calls ---


def test_a_step_that_grows_many_rows_is_one_call():
    space = Space(NAME, PAGE, regions=64)
    rows = [row * 4 * PER_REGION for row in range(16)]
    first = [space.entry(row) for row in rows]
    space.driver.map(first)
    calls = Calls(MAP, UNMAP, "UVM_UNMAP_EXTERNAL", "UVM_MAP_EXTERNAL_ALLOCATION")
    second = [space.entry(row + 1, pages=2) for row in rows]
    space.driver.map(second)
    space.driver.unmap(first)
    assert list(calls.made().values()) == [2, 0, 0, 0]
    space.driver.unmap(second)
    space.give_back()


def test_a_batch_larger_than_the_module_takes_is_still_whole_or_not_at_all():
    limit = _native.emulated_nvidia.query_patch().max_batch
    space = Space(NAME, PAGE, regions=2 * limit // PER_REGION + 8)
    batch = [space.entry(2 * i) for i in range(limit + 10)]
    emulated_nvidia.fail(MAP, 2, GPU_IS_LOST)
    with pytest.raises(DriverError, match="GPU_IS_LOST"):
        space.driver.map(batch)
    assert writable() == []
    space.driver.map(batch)
    assert len(writable()) == len(batch)
    space.driver.unmap(batch)
    space.give_back()
    assert held() == NOTHING


@pytest.mark.parametrize("page", [64 * KB, 128 * KB, 256 * KB, REGION])
def test_every_page_size_maps_writes_and_reads(page):
    space = Space(NAME, page)
    entry = space.entry(1, pages=3, memory=0)
    space.driver.map([entry])
    space.write(3, b"third")
    assert space.read(3).startswith(b"third")
    assert space.read(0) == space.read(4 % (space.bytes // page)) == bytes(64)
    space.driver.unmap([entry])
    assert space.zeros_everywhere()
    space.give_back()
    assert held() == NOTHING


# --- the shared tail guard ---


def test_zeros_beyond_the_last_page_have_the_entries_that_pages_will_have(space):
    """So that a page takes their place in one write, while a kernel reads there."""
    space.driver.map([space.entry(PER_REGION - 1)])
    end = space.address(PER_REGION) + AHEAD * REGION
    for line in emulated_nvidia.mappings():
        address = int(line.split()[0], 16)
        if space.base <= address < end:
            assert "by 64K" in line
    space.driver.unmap([space.entry(PER_REGION - 1)])


@pytest.mark.parametrize("page", [PAGE, REGION])
def test_growing_over_the_guard_takes_nothing_away_first(page):
    """A kernel reads up to the guard's end while the next pages are mapped there."""
    space = Space(NAME, page, regions=12)
    mapped = [space.entry(0)]
    space.driver.map(mapped)
    for place in range(1, 5 * REGION // page):
        calls = Calls(UNMAP, "UVM_UNMAP_EXTERNAL")
        before = emulated_nvidia.mappings()
        entry = space.entry(place)
        space.driver.map([entry])
        mapped.append(entry)
        if any(calls.made().values()):
            changed = set(before) - set(emulated_nvidia.mappings())
            gone = [int(line.split()[0], 16) for line in changed if "by 2048K" in line]
            assert gone
            assert min(gone) >= space.address(place) + AHEAD * REGION - page
    space.driver.unmap(mapped)
    space.give_back()


def test_the_zeros_cannot_be_written(space):
    assert all(line.endswith("vattn") for line in emulated_nvidia.mappings())
    assert writable() == []


# --- failures ---


def batch_of(space: Space) -> list[_native.MapEntry]:
    return [
        space.entry(0, pages=2),
        space.entry(PER_REGION - 1, pages=40, memory=9),
        space.entry(200),
    ]


@pytest.mark.parametrize(("name", "nth"), [(MAP, 1), (UNMAP, 1)])
def test_a_map_that_fails_leaves_zeros(space, name, nth):
    emulated_nvidia.fail(name, nth, NO_MEMORY)
    with pytest.raises(OutOfMemory, match="NV_ERR_NO_MEMORY"):
        space.driver.map(batch_of(space))
    assert writable() == []
    assert space.zeros_everywhere()
    space.driver.map(batch_of(space))
    space.driver.unmap(batch_of(space))


def test_an_unmap_that_fails_keeps_everything(space):
    space.driver.map(batch_of(space))
    space.write(1, b"kept")
    emulated_nvidia.fail(MAP, 1, GPU_IS_LOST)
    with pytest.raises(DriverError) as caught:
        space.driver.unmap(batch_of(space))
    assert caught.value.status == "NV_ERR_GPU_IS_LOST"
    assert space.read(1).startswith(b"kept")
    space.driver.unmap(batch_of(space))


def test_out_of_memory_names_the_size(space):
    emulated_cuda.occupy(0, 4 << 30)
    with pytest.raises(OutOfMemory) as caught:
        space.driver.allocate_slab(64 << 20)
    assert caught.value.requested == 64 << 20


@pytest.mark.parametrize("nth", range(1, 5))
def test_a_reservation_that_fails_leaves_nothing(nth):
    driver = _native.make_driver(NAME, PAGE)
    before = held()
    emulated_nvidia.fail(MAP, 1, GPU_IS_LOST)
    with pytest.raises(DriverError):
        driver.reserve(nth * CHUNK, REGION)
    assert held() == before


@pytest.mark.parametrize("fails", [True, False])
def test_an_extent_over_the_border_of_two_chunks_is_one_call_of_two_entries(space, fails):
    border = CHUNK // PAGE
    neighbours = [space.entry(border - 2), space.entry(border + 1)]
    space.driver.map(neighbours)
    extent = space.entry(border - 1, pages=2)
    if fails:
        emulated_nvidia.fail(MAP, 1, GPU_IS_LOST)
        with pytest.raises(DriverError):
            space.driver.map([extent])
        assert space.read(border - 1) == space.read(border) == bytes(64)
    calls = Calls(MAP)
    space.driver.map([extent])
    assert calls.made() == {MAP: 1}
    space.write(border - 1, b"before")
    space.write(border, b"behind")
    assert space.read(border - 1).startswith(b"before")
    assert space.read(border).startswith(b"behind")
    space.driver.unmap([extent])
    assert space.read(border - 1) == space.read(border) == bytes(64)
    space.driver.unmap(neighbours)


def test_a_reset_context_is_reported_and_everything_can_be_closed():
    space = Space(NAME, PAGE)
    space.driver.map([space.entry(0)])
    emulated_cuda.reset_context(0)
    with pytest.raises(DriverError, match="reset or destroyed"):
        space.driver.map([space.entry(1)])
    space.driver.unmap([space.entry(0)])
    space.give_back()


def test_a_driver_that_is_dropped_with_everything_mapped_gives_it_all_back():
    space = Space(NAME, PAGE)
    space.driver.map([space.entry(0, pages=40)])
    del space
    assert held() == NOTHING
