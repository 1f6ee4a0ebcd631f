# SPDX-License-Identifier: Apache-2.0
"""Reading a driver's memory, on the CPU and on a GPU."""

from __future__ import annotations

import ctypes
from typing import Any, Protocol

from pyvattn import _native

_CPU = 1  # DLPack's number


class Rates(Protocol):
    """``read`` passes over ``bytes`` of memory."""

    bytes: int

    def read(self) -> None:
        """Read all of it, and wait."""


def make_rates(driver: _native.Driver, base: int, size: int) -> Rates | None:
    """Return what can pass over ``size`` mapped bytes at ``base``; None without torch on a GPU."""
    kind, ordinal = driver.capabilities.dlpack_device
    if kind == _CPU:
        return _HostRates(base, size)
    try:
        return _DeviceRates(ordinal, size)
    except ImportError:
        return None


class _HostRates:
    """One thread of the CPU: memchr reads at the pace of memory, and writes nothing."""

    def __init__(self, base: int, size: int) -> None:
        self.bytes, self._base = size, base
        self._libc = ctypes.CDLL(None)
        self._libc.memchr.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)

    def read(self) -> None:
        """Look for a byte that is not there: the memory is all zeros."""
        self._libc.memchr(self._base, 1, self.bytes)


class _DeviceRates:
    """The device, through torch, on memory of torch's own: page size does not slow streaming."""

    # So much that what caches hold does not matter.
    _LEAST = 1 << 30

    def __init__(self, ordinal: int, size: int) -> None:
        import torch

        self._torch: Any = torch
        self.bytes = max(size, self._LEAST)
        self._data = torch.zeros(self.bytes // 4, dtype=torch.int32, device=f"cuda:{ordinal}")

    def read(self) -> None:
        """Take the largest element."""
        self._data.max()
        self._torch.cuda.synchronize()
