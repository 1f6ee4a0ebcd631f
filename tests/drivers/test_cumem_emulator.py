# SPDX-License-Identifier: Apache-2.0
"""The emulated libcuda refuses what CUDA refuses: state by state, through its C interface."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint64, c_void_p
from pathlib import Path

import pytest

PAGE = 2 << 20
SUCCESS, INVALID_VALUE, OUT_OF_MEMORY, NOT_INITIALIZED = 0, 1, 2, 3
INVALID_DEVICE, INVALID_CONTEXT, INVALID_HANDLE = 101, 201, 400


class Properties(ctypes.Structure):
    _fields_ = [
        ("type", c_int),
        ("handle_types", c_int),
        ("location_type", c_int),
        ("device", c_int),
        ("meta", c_void_p),
        ("flags", c_uint64),
    ]


class Access(ctypes.Structure):
    _fields_ = [("location_type", c_int), ("device", c_int), ("flags", c_int)]


class Gpu:
    """Calls of libcuda with Python numbers; each returns the status."""

    def __init__(self, library: Path):
        self.cuda = ctypes.CDLL(str(library))
        assert self.cuda.cuInit(0) == SUCCESS

    def reserve(self, size: int = 8 * PAGE, alignment: int = 0) -> int:
        address = c_uint64()
        status = self.cuda.cuMemAddressReserve(
            byref(address), c_size_t(size), c_size_t(alignment), c_uint64(0), c_uint64(0)
        )
        assert status == SUCCESS
        return address.value

    def free(self, address: int, size: int = 8 * PAGE) -> int:
        return self.cuda.cuMemAddressFree(c_uint64(address), c_size_t(size))

    def create(self, size: int = PAGE, device: int = 0, kind: int = 1) -> tuple[int, int]:
        handle = c_uint64()
        wanted = Properties(type=kind, location_type=1, device=device)
        status = self.cuda.cuMemCreate(byref(handle), c_size_t(size), byref(wanted), c_uint64(0))
        return status, handle.value

    def release(self, handle: int) -> int:
        return self.cuda.cuMemRelease(c_uint64(handle))

    def map(self, address: int, handle: int, size: int = PAGE, offset: int = 0) -> int:
        return self.cuda.cuMemMap(
            c_uint64(address), c_size_t(size), c_size_t(offset), c_uint64(handle), c_uint64(0)
        )

    def unmap(self, address: int, size: int = PAGE) -> int:
        return self.cuda.cuMemUnmap(c_uint64(address), c_size_t(size))

    def allow(self, address: int, size: int = PAGE, device: int = 0, count: int = 1) -> int:
        access = (Access * 2)(Access(1, device, 3), Access(1, 1 - device, 3))
        return self.cuda.cuMemSetAccess(c_uint64(address), c_size_t(size), access, c_size_t(count))


@pytest.fixture
def gpu(emulated_libcuda):
    return Gpu(emulated_libcuda)


@pytest.fixture
def space(gpu):
    address = gpu.reserve()
    yield address
    assert gpu.free(address) == SUCCESS, "the test left mappings"


@pytest.fixture
def handle(gpu):
    status, handle = gpu.create()
    assert status == SUCCESS
    yield handle
    assert gpu.release(handle) == SUCCESS, "the test left mappings"


def test_a_mapped_and_accessible_page_is_memory(gpu, space, handle):
    assert gpu.map(space, handle) == SUCCESS
    assert gpu.allow(space) == SUCCESS
    ctypes.memset(space, 7, PAGE)
    assert gpu.unmap(space) == SUCCESS
    assert gpu.map(space + PAGE, handle) == SUCCESS
    assert gpu.allow(space + PAGE) == SUCCESS
    assert ctypes.string_at(space + PAGE, PAGE) == b"\7" * PAGE
    assert gpu.unmap(space + PAGE) == SUCCESS


def test_reservations_are_aligned(gpu):
    address = gpu.reserve(PAGE, 64 * PAGE)
    assert address % (64 * PAGE) == 0
    assert gpu.free(address, PAGE) == SUCCESS


def test_a_double_map_is_refused(gpu, space, handle):
    assert gpu.map(space, handle) == SUCCESS
    assert gpu.map(space, handle) == INVALID_VALUE
    assert gpu.unmap(space) == SUCCESS


def test_an_unmap_of_nothing_is_refused(gpu, space):
    assert gpu.unmap(space) == INVALID_VALUE


def test_a_partial_unmap_is_refused_and_a_run_of_whole_mappings_is_not(gpu, space, handle):
    status, big = gpu.create(2 * PAGE)
    assert status == SUCCESS
    assert gpu.map(space, big, 2 * PAGE) == SUCCESS
    assert gpu.map(space + 2 * PAGE, handle) == SUCCESS
    assert gpu.unmap(space, PAGE) == INVALID_VALUE
    assert gpu.unmap(space + PAGE, 2 * PAGE) == INVALID_VALUE
    assert gpu.unmap(space, 4 * PAGE) == INVALID_VALUE
    assert gpu.unmap(space, 3 * PAGE) == SUCCESS
    assert gpu.release(big) == SUCCESS


def test_no_call_goes_from_one_reservation_into_the_next(gpu, handle):
    first = gpu.reserve(PAGE)
    second = gpu.reserve(PAGE)
    assert second == first + PAGE
    _, other = gpu.create()
    assert gpu.map(first, handle) == SUCCESS
    assert gpu.map(second, other) == SUCCESS
    assert gpu.allow(first, 2 * PAGE) == INVALID_VALUE
    assert gpu.unmap(first, 2 * PAGE) == INVALID_VALUE
    for address in (first, second):
        assert gpu.allow(address) == SUCCESS
        assert gpu.unmap(address) == SUCCESS
        assert gpu.free(address, PAGE) == SUCCESS
    assert gpu.release(other) == SUCCESS


def test_unknown_handles_are_refused(gpu, space):
    assert gpu.map(space, 12345) == INVALID_VALUE
    assert gpu.release(12345) == INVALID_VALUE


def test_a_handle_cannot_be_released_twice(gpu):
    _, handle = gpu.create()
    assert gpu.release(handle) == SUCCESS
    assert gpu.release(handle) == INVALID_VALUE


def test_nothing_that_is_mapped_can_be_freed(gpu, space, handle):
    assert gpu.map(space, handle) == SUCCESS
    assert gpu.free(space) == INVALID_VALUE
    assert gpu.release(handle) == INVALID_VALUE
    assert gpu.unmap(space) == SUCCESS


def test_a_reservation_is_freed_only_as_it_was_made(gpu):
    address = gpu.reserve()
    assert gpu.free(address, PAGE) == INVALID_VALUE
    assert gpu.free(address + PAGE) == INVALID_VALUE
    assert gpu.free(address) == SUCCESS
    assert gpu.free(address) == INVALID_VALUE


@pytest.mark.parametrize(
    ("place", "size", "offset"),
    [(4096, PAGE, 0), (0, 4096, 0), (0, PAGE, 4096), (0, PAGE, PAGE), (0, 2 * PAGE, 0), (0, 0, 0)],
)
def test_maps_off_the_granularity_or_the_handle_are_refused(
    gpu, space, handle, place, size, offset
):
    assert gpu.map(space + place, handle, size, offset) == INVALID_VALUE


def test_maps_outside_a_reservation_are_refused(gpu, space, handle):
    assert gpu.map(space + 8 * PAGE, handle) == INVALID_VALUE
    assert gpu.map(space - PAGE, handle) == INVALID_VALUE


def test_access_needs_whole_mappings(gpu, space, handle):
    assert gpu.allow(space) == INVALID_VALUE
    assert gpu.map(space, handle) == SUCCESS
    assert gpu.allow(space, 2 * PAGE) == INVALID_VALUE
    assert gpu.allow(space + PAGE // 2, PAGE // 2) == INVALID_VALUE
    assert gpu.allow(space, device=9) == INVALID_DEVICE
    assert gpu.allow(space, count=0) == INVALID_VALUE
    assert gpu.allow(space, count=2) == SUCCESS
    assert gpu.unmap(space) == SUCCESS


def test_allocations_need_the_granularity_a_kind_and_a_device(gpu):
    assert gpu.create(PAGE + 4096)[0] == INVALID_VALUE
    assert gpu.create(0)[0] == INVALID_VALUE
    assert gpu.create(kind=0)[0] == INVALID_VALUE
    assert gpu.create(device=9)[0] == INVALID_DEVICE


def test_a_device_has_an_end(gpu):
    assert gpu.create(8 << 30)[0] == OUT_OF_MEMORY


def test_work_needs_a_current_context(gpu):
    stream, event, size = c_void_p(), c_void_p(), c_size_t()
    assert gpu.cuda.cuStreamCreate(byref(stream), 1) == INVALID_CONTEXT
    assert gpu.cuda.cuEventCreate(byref(event), 3) == INVALID_CONTEXT
    assert gpu.cuda.cuMemGetInfo_v2(byref(size), byref(size)) == INVALID_CONTEXT
    popped = c_void_p()
    assert gpu.cuda.cuCtxPopCurrent_v2(byref(popped)) == INVALID_CONTEXT


def test_void_streams_and_events_are_refused(gpu):
    context = c_void_p()
    assert gpu.cuda.cuDevicePrimaryCtxRetain(byref(context), 0) == SUCCESS
    assert gpu.cuda.cuCtxPushCurrent_v2(context) == SUCCESS
    nothing = c_void_p(0x123)
    assert gpu.cuda.cuEventQuery(nothing) == INVALID_HANDLE
    assert gpu.cuda.cuEventDestroy_v2(nothing) == INVALID_HANDLE
    assert gpu.cuda.cuStreamDestroy_v2(nothing) == INVALID_HANDLE
    assert gpu.cuda.cuCtxPopCurrent_v2(byref(context)) == SUCCESS
    assert gpu.cuda.cuDevicePrimaryCtxRelease_v2(0) == SUCCESS


def test_statuses_have_cudas_names(gpu):
    name, text = c_char_p(), c_char_p()
    assert gpu.cuda.cuGetErrorName(OUT_OF_MEMORY, byref(name)) == SUCCESS
    assert gpu.cuda.cuGetErrorString(OUT_OF_MEMORY, byref(text)) == SUCCESS
    assert (name.value, text.value) == (b"CUDA_ERROR_OUT_OF_MEMORY", b"out of memory")
    assert gpu.cuda.cuGetErrorName(12345, byref(name)) == INVALID_VALUE
