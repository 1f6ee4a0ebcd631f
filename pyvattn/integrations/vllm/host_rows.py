# SPDX-License-Identifier: Apache-2.0
"""Rows of preempted requests in host memory: one copy for each arena, there and back."""

from __future__ import annotations

import logging
from typing import Any

from pyvattn.errors import BusyError, OutOfMemory
from pyvattn.integrations.vllm.memory import RowMemory
from pyvattn.swap import pinned_bytes
from pyvattn.units import format_size

__all__ = ["HostRows"]

_log = logging.getLogger("vllm.pyvattn")


class HostRows:
    """Copies rows of ``memory`` to at most ``limit`` bytes of the host, and back.

    Copies are launched on the stream that is current, which must be the one of the kernels that
    write and read the rows: behind what was launched there, and in front of what follows.
    """

    def __init__(self, memory: RowMemory, limit: int) -> None:
        self._memory = memory
        self._tensors = memory.rows._tensors
        self._limit = limit
        # Whole blocks of each request, ``[arenas, bytes]``.
        self._data: dict[str, Any] = {}
        self._held = 0
        self.reset_stats()

    def save(self, request_id: str, row: int | None, tokens: int) -> bool:
        """Copy the blocks of a request's first tokens to the host; return whether that was done.

        ``row``: None where it has none any more.
        """
        end = self._bytes(-(-tokens // self._memory.block_size))
        try:
            data = self._copied(row, end)
        except (OutOfMemory, RuntimeError) as error:
            self._counts["swap_refused"] += 1
            _log.info("pyvattn: %d tokens are computed anew, not swapped: %s", tokens, error)
            return False
        self._data[request_id] = data
        self._held += self._taken(data.numel())
        self._counts["swapped_out"] += 1
        self._counts["swap_bytes_out"] += data.numel()
        return True

    def load(self, request_id: str, row: int | None, first: int, end: int) -> bool:
        """Copy the blocks of the tokens ``[first, end)`` to a row; return whether that was done.

        The host's copy goes with it.
        """
        data = self._data.get(request_id)
        if data is None or row is None:
            return False
        block = self._memory.block_size
        begin, stop = self._bytes(first // block), self._bytes(-(-end // block))
        self._memory.join()
        try:
            self._tensors.fill(data, row, 0, range(len(data)), (0, begin, stop), ())
        except RuntimeError as error:
            _log.warning("pyvattn: %d swapped tokens are computed anew: %s", end - first, error)
            return False
        finally:
            self.drop(request_id)
        self._counts["swapped_in"] += 1
        self._counts["swap_bytes_in"] += (stop - begin) * len(data)
        return True

    def drop(self, request_id: str) -> None:
        """Let go of a request's host memory, if it has any."""
        data = self._data.pop(request_id, None)
        if data is not None:
            self._held -= self._taken(data.numel())

    def close(self) -> None:
        """Let go of all of it."""
        for request_id in list(self._data):
            self.drop(request_id)

    def stats(self) -> dict[str, int | float]:
        """Count requests and bytes that were copied, and host memory that is taken now."""
        return {**self._counts, "swapped_now": len(self._data), "swap_host_bytes": self._held}

    def reset_stats(self) -> None:
        """Count from here on."""
        self._counts = dict.fromkeys(
            ("swapped_out", "swap_refused", "swapped_in", "swap_bytes_out", "swap_bytes_in"), 0
        )

    def _copied(self, row: int | None, end: int) -> Any:
        """Return so many bytes of each arena on their way to the host, or raise what forbids it."""
        if row is None:
            raise BusyError("another request has its row")
        size = end * self._memory.pool.geometry.arenas
        if self._held + self._taken(size) > self._limit:
            raise OutOfMemory(f"swap_memory={format_size(self._limit)} is in use", requested=size)
        (data,) = self._tensors.to_host(row, [(0, end)])
        return data

    def _taken(self, size: int) -> int:
        on_gpu = not self._memory.pool.driver.startswith("host")
        return pinned_bytes(size) if on_gpu else size

    def _bytes(self, blocks: int) -> int:
        return blocks * self._memory.pool.geometry.page_size
