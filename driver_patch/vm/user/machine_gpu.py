# SPDX-License-Identifier: MIT OR GPL-2.0
"""What tests in the emulated machine do beside pyvattn: reach memory, read counters."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import mapped_space
import row_engine

from pyvattn import _native

libcuda = ctypes.CDLL("libcuda.so.1")

#: struct gpusim_get_counters of sim/gpusim_uapi.h: two words, then counters of 8 bytes.
_SIM_COUNTERS = ("pushes", "methods", "invalidates")
_SIM_COUNTERS_BYTES = 8 + 17 * 8
_SIM_GET_COUNTERS = 0xC0000000 | _SIM_COUNTERS_BYTES << 16 | ord("g") << 8 | 4

#: struct uvm_vattn_stats of uapi/uvm_vattn_ioctl.h: 33 values of 8 bytes, two of 4.
_STATS_BYTES = 33 * 8 + 8
_STATS = 0xC0000000 | _STATS_BYTES << 16 | 0x56 << 8 | 0x45
_STATS_FIELDS = (
    *("bytes_allocated", "handles"),
    *("process_bytes", "process_mappings", "limit_bytes", "limit_mappings"),
    *("alloc_calls", "free_calls", "map_calls", "unmap_calls", "failed_calls"),
    *("map_entries", "unmap_entries", "ptes_written", "pte_pushes", "tlb_invalidates"),
    "clear_pushes",
)


def simulator_counters() -> dict[str, int]:
    """What the simulated GPU did since it was made."""
    block = bytearray(_SIM_COUNTERS_BYTES)
    fd = os.open("/dev/gpusim", os.O_RDWR)
    fcntl.ioctl(fd, _SIM_GET_COUNTERS, block)
    os.close(fd)
    return dict(zip(_SIM_COUNTERS, struct.unpack_from("=3Q", block, 8), strict=True))


def patch_statistics() -> dict[str, int]:
    """What UVM_VATTN_STATS says of the VA space that CUDA opened in this process."""
    for entry in Path("/proc/self/fd").iterdir():
        if os.readlink(entry) != "/dev/nvidia-uvm":
            continue
        block = bytearray(_STATS_BYTES)
        fcntl.ioctl(int(entry.name), _STATS, block)
        if struct.unpack_from("=I", block, _STATS_BYTES - 4)[0] == 0:
            return dict(zip(_STATS_FIELDS, struct.unpack_from("=17Q", block, 128), strict=True))
    raise AssertionError("no descriptor of this process answers UVM_VATTN_STATS")


#: GPUSIM_SUSPEND and GPUSIM_RESUME.
_SIM_SUSPEND, _SIM_RESUME = (ord("g") << 8 | number for number in (11, 12))

#: Resumes the system when the process that it is told of has begun to wait.
_RESUMER = f"""
import fcntl, os, sys
assert sys.stdin.buffer.read(1)
while open(f"/proc/{{sys.argv[1]}}/stat").read().rsplit(")", 1)[1].split()[0] != "S":
    pass
fcntl.ioctl(os.open("/dev/gpusim", os.O_RDWR), {_SIM_RESUME})
"""


@contextlib.contextmanager
def suspended() -> Iterator[Callable[[], None]]:
    """Suspend the system; what is yielded lets it resume once this thread waits."""
    sim = os.open("/dev/gpusim", os.O_RDWR)
    uvm = os.open("/dev/nvidia-uvm", os.O_RDWR)
    resumer = subprocess.Popen(
        [sys.executable, "-IS", "-c", _RESUMER, str(os.getpid())], stdin=subprocess.PIPE
    )
    fcntl.ioctl(sim, _SIM_SUSPEND)

    def resume_when_i_wait() -> None:
        assert resumer.stdin is not None
        resumer.stdin.write(b".")
        resumer.stdin.flush()

    try:
        with contextlib.suppress(BlockingIOError):
            fcntl.ioctl(uvm, _STATS, bytearray(_STATS_BYTES))
            raise AssertionError("nvidia-uvm takes calls while the system is suspended")
        yield resume_when_i_wait
    finally:
        fcntl.ioctl(sim, _SIM_RESUME)
        resumer.kill()
        resumer.communicate()
        os.close(uvm)
        os.close(sim)


#: GPUSIM_INJECT and GPUSIM_INJECTED: name, nth, status, how often it failed, calls, last name.
_SIM_INJECTION = struct.Struct("=48s4I48s")
_SIM_INJECT = 0x40000000 | _SIM_INJECTION.size << 16 | ord("g") << 8 | 5
_SIM_INJECTED = 0x80000000 | _SIM_INJECTION.size << 16 | ord("g") << 8 | 6


class FailingModule:
    """Lets the nth call (1: the next) fail that nvidia-uvm makes of nvidia.ko."""

    def __init__(self, nth: int) -> None:
        self._nth = nth
        self.failed = False

    def __enter__(self) -> FailingModule:
        self._sim = os.open("/dev/gpusim", os.O_RDWR)
        self._arm(self._nth)
        return self

    def __exit__(self, *_: object) -> None:
        block = bytearray(_SIM_INJECTION.size)
        fcntl.ioctl(self._sim, _SIM_INJECTED, block)
        self.failed = _SIM_INJECTION.unpack(block)[3] > 0
        self._arm(0)
        os.close(self._sim)

    def _arm(self, nth: int) -> None:
        fcntl.ioctl(self._sim, _SIM_INJECT, _SIM_INJECTION.pack(b"", nth, 0, 0, 0, b""))


def write_device(address: int, data: bytes) -> None:
    size = ctypes.c_size_t(len(data))
    assert libcuda.cuMemcpyHtoDAsync_v2(ctypes.c_uint64(address), data, size, None) == 0


def read_device(address: int, size: int) -> bytes:
    data = ctypes.create_string_buffer(size)
    at = ctypes.c_uint64(address)
    assert libcuda.cuMemcpyDtoHAsync_v2(data, at, ctypes.c_size_t(size), None) == 0
    return data.raw


class DeviceSpace(mapped_space.Space):
    """Reaches the memory through CUDA's copies: the CPU cannot touch it."""

    def write(self, place: int, data: bytes) -> None:
        write_device(self.address(place), data)

    def read(self, place: int, size: int = 64) -> bytes:
        return read_device(self.address(place), size)


class DeviceMemory(row_engine.Memory):
    """The same for rows, and the stream whose work libcuda holds for tests."""

    def write(self, address: int, data: bytes) -> None:
        write_device(address, data)

    def read(self, address: int, size: int) -> bytes:
        return read_device(address, size)

    @contextlib.contextmanager
    def held_work(self, driver: str) -> Iterator[row_engine.HeldWork]:
        libcuda.machine_hold.restype = ctypes.c_uint64
        fence = _native.stream_fence(driver, 0, libcuda.machine_hold())
        try:
            yield row_engine.HeldWork(fence, lambda: libcuda.machine_waiting() > 0)
        finally:
            libcuda.machine_let_go()


def page_sizes(driver: str) -> list[int]:
    """Page sizes of a driver on this machine, in bytes."""
    return list(_native.driver_capabilities(driver, 0).page_sizes)
