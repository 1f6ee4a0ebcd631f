# SPDX-License-Identifier: Apache-2.0
"""The emulated NVIDIA machine refuses what NVIDIA's driver refuses, and by its names.

A lenient emulator proves nothing: each rule that the drivers are tested against is
broken here on purpose, with raw ioctls or by a driver that is told the wrong thing.
"""

from __future__ import annotations

import errno
import struct

import pytest
from nvidia_machine import KB, REGION, Space, start

from pyvattn import _native
from pyvattn.errors import ConfigError, DriverError

emulated_cuda, emulated_nvidia = _native.emulated_cuda, _native.emulated_nvidia

PAGE = 64 * KB
CONTROL, UVM, GPU = "/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia3"
ILLEGAL_ACTION, INVALID_CLIENT, INVALID_ARGUMENT = 0x16, 0x23, 0x1F
RM_ALLOC, RM_FREE, RM_CONTROL, REGISTER_FD = 0x2B, 0x29, 0x2A, 201


@pytest.fixture(autouse=True)
def _machine():
    start()


def rm(number: int, size: int) -> int:
    """_IOWR('F', number, size)."""
    return 3 << 30 | size << 16 | ord("F") << 8 | number


def ioctl(path: str, request: int, block: bytes = bytes(64)) -> tuple[int, bytes]:
    return emulated_nvidia.ioctl(path, request, block)


@pytest.mark.parametrize("path", [CONTROL, UVM, GPU])
@pytest.mark.parametrize("request_", [0, 200, rm(0x55, 16), 0xC0185600])
def test_unknown_ioctls_are_an_errno(path, request_):
    assert ioctl(path, request_)[0] == errno.EINVAL


@pytest.mark.parametrize("number", [RM_ALLOC, RM_FREE, RM_CONTROL, REGISTER_FD])
def test_wrong_sizes_are_an_errno(number):
    assert ioctl(CONTROL, rm(number, 12))[0] == errno.EINVAL


def test_unknown_nodes_do_not_open():
    assert ioctl("/dev/nvidia0", 0)[0] == errno.ENOENT
    start(forbidden_nodes=[CONTROL])
    assert ioctl(CONTROL, 0)[0] == errno.EACCES


def test_objects_are_for_the_control_node_only():
    assert ioctl(GPU, rm(RM_ALLOC, 32))[0] == errno.EINVAL


def test_a_client_must_exist():
    call = struct.pack("<IIIIQII", 0xDEAD, 0xDEAD, 0, 0x80, 0, 0, 0)
    error, after = ioctl(CONTROL, rm(RM_ALLOC, 32), call)
    assert (error, struct.unpack_from("<I", after, 28)[0]) == (0, INVALID_CLIENT)
    error, after = ioctl(CONTROL, rm(RM_FREE, 16), struct.pack("<IIII", 1, 0, 1, 0))
    assert (error, struct.unpack_from("<I", after, 12)[0]) == (0, INVALID_CLIENT)


def test_a_fresh_uvm_file_has_no_address_space():
    """As the second descriptor that CUDA holds: the driver must not take it for the first."""
    block = struct.pack("<QQ16sI", 1 << 40, PAGE, bytes(16), 0).ljust(64, b"\0")
    error, after = ioctl(UVM, 66, block)
    assert (error, struct.unpack_from("<I", after, 32)[0]) == (0, ILLEGAL_ACTION)


def test_a_registered_descriptor_must_be_a_control_file():
    assert ioctl(GPU, rm(REGISTER_FD, 4), struct.pack("<i", 12345))[0] == errno.EINVAL


# --- what a driver that lost count would do ---


@pytest.fixture(params=["stock-uvm-emulated", "patched-emulated"])
def space(request):
    """A driver without the adaptor that would refuse these calls before the machine."""
    return Space(request.param, PAGE)


def status_of(call) -> str:
    with pytest.raises(DriverError) as caught:
        call()
    return caught.value.status


def test_stock_one_page_over_another_is_refused():
    space = Space("stock-uvm-emulated", PAGE)
    space.driver.map([space.entry(0)])
    assert status_of(lambda: space.driver.map([space.entry(0, memory=5)])) == (
        "NV_ERR_UVM_ADDRESS_IN_USE"
    )


def test_patched_the_same_address_twice_in_a_batch_is_refused():
    space = Space("patched-emulated", PAGE)
    batch = [space.entry(0), space.entry(0, memory=5)]
    assert status_of(lambda: space.driver.map(batch)) == "NV_ERR_UVM_ADDRESS_IN_USE"


def test_a_free_while_mapped_is_refused(space):
    space.driver.map([space.entry(0)])
    assert status_of(lambda: space.driver.free_slab(space.slabs[0])) == "NV_ERR_IN_USE"


def test_memory_beyond_the_slab_is_refused(space):
    pages = space.bytes // PAGE
    status = status_of(lambda: space.driver.map([space.entry(0, memory=pages)]))
    assert status in ("NV_ERR_INVALID_OFFSET", "NV_ERR_INVALID_ARGUMENT")


def test_small_entries_cannot_be_put_where_a_large_one_is():
    """NVIDIA's module answers 0x1e: what is mapped cannot be split there."""
    space = Space("stock-uvm-emulated", REGION)
    space.driver.map([space.entry(0)])
    half = _native.MapEntry(space.base, PAGE, space.slabs[0], 0)
    assert status_of(lambda: space.driver.unmap([half])) == "NV_ERR_INVALID_ADDRESS"


def test_a_kernel_that_reads_where_nothing_is_mapped_faults():
    """Where CUDA's books say that something is: the machine looks at its own page tables."""
    space = Space("stock-uvm-emulated", PAGE)
    space.driver.map([space.entry(0)])
    stream = emulated_cuda.make_stream(0)
    kernel = emulated_cuda.launch_kernel(0, stream, space.base, space.bytes)
    emulated_cuda.release_kernel(kernel)
    space.driver.zero([(space.base, PAGE)])  # the kernel read zeros behind the page
    emulated_nvidia.fail("UVM_MAP_EXTERNAL_ALLOCATION", 1, 0x0F)
    emulated_nvidia.fail("UVM_MAP_EXTERNAL_ALLOCATION", 2, 0x0F)
    with pytest.raises(DriverError):
        space.driver.map([space.entry(1)])  # leaves a hole: the roll back fails too
    kernel = emulated_cuda.launch_kernel(0, stream, space.base, space.bytes)
    emulated_cuda.release_kernel(kernel)
    with pytest.raises(DriverError, match="ILLEGAL_ADDRESS"):
        space.driver.zero([(space.base, PAGE)])
    emulated_nvidia.reset()


def test_unknown_names_of_ioctls_and_releases_are_refused():
    with pytest.raises(ConfigError, match="no ioctl"):
        emulated_nvidia.fail("NV_ESC_NONSENSE", 1, 1)
    settings = emulated_nvidia.Settings()
    settings.layout_of = "1.2.3"
    with pytest.raises(ConfigError, match="no layout"):
        emulated_nvidia.reset(settings)
