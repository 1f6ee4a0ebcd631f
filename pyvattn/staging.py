# SPDX-License-Identifier: Apache-2.0
"""Bytes of one GPU to memory mapped on another, which the first one cannot write to.

They go by way of memory of torch's, which it can: over the link to a buffer, and on from there to
where they belong. There are two buffers, so that the link never waits for the second copy.
"""

from __future__ import annotations

from typing import Any

from pyvattn.errors import OutOfMemory
from pyvattn.units import format_size

# Long enough that launching a copy takes less than the copy, even over the fastest link.
_STAGED = 64 << 20


class Staging:
    """Two buffers on ``device``, for views of up to ``longest`` bytes, and what empties them.

    :meth:`close` makes the device's current stream, which fills them, wait until all has arrived.
    Raises :class:`~pyvattn.errors.OutOfMemory` where the device has no room for the buffers.
    """

    def __init__(self, device: Any, longest: int) -> None:
        import torch

        self._cuda = torch.cuda
        self._device = device
        self._onward = torch.cuda.Stream(device)
        size = min(_STAGED, longest)
        try:
            self._buffers = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2)]
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(
                f"{device} has no {format_size(2 * size)} beside the cache, by way of which tokens "
                "of another GPU come: leave it more, or open the cache with peer_access=True",
                requested=2 * size,
            ) from error
        self._emptied = [torch.cuda.Event() for _ in self._buffers]
        self._turn = 0

    def copy(self, there: Any, source: Any) -> None:
        """Copy the bytes of ``source`` to the device's tensor ``there``, which has as many."""
        for first in range(0, len(source), _STAGED):
            piece = slice(first, first + _STAGED)
            self._copy_piece(there[piece], source[piece])

    def close(self) -> None:
        """Make the device's current stream wait for what was copied."""
        self._cuda.current_stream(self._device).wait_stream(self._onward)

    def _copy_piece(self, there: Any, source: Any) -> None:
        filling, emptied = self._cuda.current_stream(self._device), self._emptied[self._turn]
        buffer = self._buffers[self._turn][: len(source)]
        self._turn = 1 - self._turn
        # torch lets the link's copy wait for this stream, and this stream for the copy. An event
        # that was never recorded has passed.
        filling.wait_event(emptied)
        buffer.copy_(source, non_blocking=True)
        self._onward.wait_stream(filling)
        with self._cuda.stream(self._onward):
            there.copy_(buffer, non_blocking=True)
        emptied.record(self._onward)
