# SPDX-License-Identifier: Apache-2.0
"""Bytes of one GPU to memory mapped on another, which the first one cannot write to.

They go by way of memory of torch's, which it can: over the link to a buffer, and on from there to
where they belong. There are two buffers, each with a stream of its own, so that the link never
waits for the second copy, nor for word from the other GPU that the copy before has arrived.
"""

from __future__ import annotations

from typing import Any

from pyvattn.errors import OutOfMemory
from pyvattn.units import format_size

# Long enough that launching a copy takes less than the copy, even over the fastest link.
_STAGED = 128 << 20


class Staging:
    """Two buffers on ``device``, for views of up to ``longest`` bytes, and what empties them.

    What the device's current stream was told before comes first; :meth:`close` makes it wait
    until all has arrived.
    Raises :class:`~pyvattn.errors.OutOfMemory` where the device has no room for the buffers.
    """

    def __init__(self, device: Any, longest: int) -> None:
        import torch

        self._cuda = torch.cuda
        self._device = device
        size = min(_STAGED, longest)
        try:
            self._buffers = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2)]
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(
                f"{device} has no {format_size(2 * size)} beside the cache, by way of which tokens "
                "of another GPU come: leave it more, or open the cache with peer_access=True",
                requested=2 * size,
            ) from error
        self._streams = [torch.cuda.Stream(device) for _ in self._buffers]
        for stream in self._streams:
            stream.wait_stream(torch.cuda.current_stream(device))
        self._turn = 0

    def copy(self, there: Any, source: Any) -> None:
        """Copy the bytes of ``source`` to the device's tensor ``there``, which has as many."""
        for first in range(0, len(source), _STAGED):
            piece = slice(first, first + _STAGED)
            self._copy_piece(there[piece], source[piece])

    def close(self) -> None:
        """Make the device's current stream wait for what was copied."""
        for stream in self._streams:
            self._cuda.current_stream(self._device).wait_stream(stream)

    def _copy_piece(self, there: Any, source: Any) -> None:
        buffer = self._buffers[self._turn][: len(source)]
        # torch makes the copy between GPUs in the source's stream, between an event of this one
        # before it and one that this one waits for.
        with self._cuda.stream(self._streams[self._turn]):
            buffer.copy_(source, non_blocking=True)
            there.copy_(buffer, non_blocking=True)
        self._turn = 1 - self._turn
