# SPDX-License-Identifier: Apache-2.0
"""Bytes of one GPU to memory mapped on another.

Two copies are under way at a time, each between a stream of either GPU: a copy waits for word from
the other GPU before it begins and sends word when it ends, and meanwhile the link would rest. Long
ones go one after the other, since two that share the link take longer than one by one.

Where the first GPU cannot write to what is mapped, bytes go by way of memory of torch's, which it
can: over the link to a buffer, and on from there to where they belong.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from typing import Any

from pyvattn.errors import OutOfMemory
from pyvattn.units import format_size

# Long enough that launching a copy takes less than the copy, even over the fastest link.
_STAGED = 128 << 20


class GpuLink(AbstractContextManager["GpuLink"]):
    """Copies from ``source`` to ``target``, devices of torch's; ``staged`` by way of buffers.

    ``longest`` is the most bytes of one copy. What the current streams of the two devices were
    told before comes first; on leaving, also with an error, both are made to wait for the copies.
    Raises :class:`~pyvattn.errors.OutOfMemory` where ``target`` has no room for the buffers.
    """

    def __init__(self, source: Any, target: Any, longest: int, *, staged: bool) -> None:
        import torch

        self._cuda = torch.cuda
        self._devices = (source, target)
        self._buffers = self._buffers_of(min(_STAGED, longest)) if staged else None
        # Of each turn, one on either device.
        self._streams = [[torch.cuda.Stream(each) for each in self._devices] for _ in range(2)]
        for streams in self._streams:
            for stream, device in zip(streams, self._devices, strict=True):
                stream.wait_stream(torch.cuda.current_stream(device))
        self._turn = 0

    def __exit__(self, *error: object) -> None:
        for streams in self._streams:
            for stream, device in zip(streams, self._devices, strict=True):
                self._cuda.current_stream(device).wait_stream(stream)

    def copy(self, there: Any, values: Any) -> None:
        """Copy the bytes ``values`` of the source to ``there`` on the target, which has as many."""
        if self._buffers is None:
            self._copy(there, values, None)
            if len(values) < _STAGED:
                self._turn = 1 - self._turn
            return
        for first in range(0, len(values), _STAGED):
            piece = slice(first, first + _STAGED)
            self._copy(there[piece], values[piece], self._buffers[self._turn])
            self._turn = 1 - self._turn

    def _copy(self, there: Any, values: Any, buffer: Any) -> None:
        with ExitStack() as streams:
            # torch takes the current stream of either device for a copy between them.
            for stream in self._streams[self._turn]:
                streams.enter_context(self._cuda.stream(stream))
            if buffer is not None:
                buffer = buffer[: len(values)]
                buffer.copy_(values, non_blocking=True)
                values = buffer
            there.copy_(values, non_blocking=True)

    def _buffers_of(self, size: int) -> list[Any]:
        import torch

        target = self._devices[1]
        try:
            return [torch.empty(size, dtype=torch.uint8, device=target) for _ in range(2)]
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(
                f"{target} has no {format_size(2 * size)} beside the cache, by way of which tokens "
                "of another GPU come: leave it more, or open the cache with peer_access=True",
                requested=2 * size,
            ) from error
