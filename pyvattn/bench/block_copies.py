# SPDX-License-Identifier: Apache-2.0
"""A buffer's blocks to another and back, one copy each: what moving a paged cache takes."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Callable
from typing import Any

from pyvattn.errors import DriverError

_Copy = Callable[[int, int, int, int], int]


class BlockCopies:
    """Copies between two buffers of as many bytes, block by block.

    The blocks lie in random order in the first, as those of a paged cache do after a while, and
    one behind the other in the second, on the host or on another device. On a GPU each copy is one
    ``cuMemcpy...Async`` on torch's stream, called through ctypes: torch's own ``copy_`` would take
    longer to launch one than the GPU takes to run it.
    """

    def __init__(self, device: Any, other: Any, block_bytes: int) -> None:
        self._device, self._size = device, block_bytes
        blocks = list(range(0, device.numel(), block_bytes))
        random.Random(0).shuffle(blocks)
        self._places = [
            (device.data_ptr() + there, other.data_ptr() + here)
            for there, here in zip(blocks, range(0, other.numel(), block_bytes), strict=True)
        ]
        self._out, self._back = _cuda_copies(other.is_cuda) if device.is_cuda else (_copy, _copy)

    def there(self) -> None:
        """Copy every block to the other; on a GPU this returns before the copies are done."""
        copy, size, stream = self._out, self._size, self._stream()
        _check({copy(here, there, size, stream) for there, here in self._places})

    def back(self) -> None:
        """Copy every block back, the same way."""
        copy, size, stream = self._back, self._size, self._stream()
        _check({copy(there, here, size, stream) for there, here in self._places})

    def _stream(self) -> int:
        if not self._device.is_cuda:
            return 0
        import torch

        return int(torch.cuda.current_stream(self._device.device).cuda_stream)


def _copy(target: int, source: int, size: int, _: int) -> int:
    ctypes.memmove(target, source, size)
    return 0


def _cuda_copies(between_gpus: bool) -> tuple[_Copy, _Copy]:
    libcuda = ctypes.CDLL("libcuda.so.1")
    out, back = libcuda.cuMemcpyDtoHAsync_v2, libcuda.cuMemcpyHtoDAsync_v2
    if between_gpus:
        out = back = libcuda.cuMemcpyDtoDAsync_v2
    for function in (out, back):
        # Addresses on either side, bytes, and the stream.
        function.argtypes = [ctypes.c_size_t] * 4
    return out, back


def _check(codes: set[int]) -> None:
    if codes != {0}:
        code = max(codes)
        raise DriverError(
            f"a copy of a block failed with CUDA's error {code}", operation="cuMemcpyAsync",
            status=str(code),
        )  # fmt: skip
