# SPDX-License-Identifier: Apache-2.0
"""Rows of preempted requests in host memory: a copy for each arena and run, there and back."""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import perf_counter
from typing import Any

from pyvattn.errors import BusyError, OutOfMemory
from pyvattn.integrations.vllm.host_pool import HostPool, Piece
from pyvattn.integrations.vllm.memory import RowMemory
from pyvattn.integrations.vllm.swap_rates import Rates
from pyvattn.integrations.vllm.waits import Event

__all__ = ["HostRows"]

_log = logging.getLogger("vllm.pyvattn")

# So much is copied to see how fast that is.
_MEASURED = 128 << 20


class HostRows:
    """Copies rows of ``memory`` to at most ``limit`` bytes of the host, and back.

    Those are taken at once, whole blocks of them. Copies are launched on the stream that is
    current, which must be the one of the kernels that write and read the rows: behind what was
    launched there, and in front of what follows. ``make_event``: of that device.
    """

    def __init__(
        self, memory: RowMemory, limit: int, make_event: Callable[[], Event] | None = None
    ) -> None:
        self._memory = memory
        geometry = memory.pool.geometry
        self._arenas, self._page = geometry.arenas, geometry.page_size
        self._blocks = limit // (self._arenas * self._page)
        on_gpu = not memory.pool.driver.startswith("host")
        self._pool = HostPool(self._blocks * self._arenas, self._page, pinned=on_gpu)
        # Of each request the bytes of all arenas, and those of one.
        self._data: dict[str, tuple[Piece, int]] = {}
        self.token_seconds = self._measured(make_event)
        # As the connector knows them.
        self.rates = Rates(self.token_seconds)
        self.reset_stats()

    def save(self, request_id: str, row: int | None, tokens: int) -> bool:
        """Copy the blocks of a request's first tokens to the host; return whether that was done.

        ``row``: None where it has none any more.
        """
        end = self._bytes(-(-tokens // self._memory.block_size))
        try:
            if row is None:
                raise BusyError("another request has its row")
            self._data[request_id] = self._copied(row, end), end
        except (OutOfMemory, RuntimeError) as error:
            self.note(refused=1)
            _log.info("pyvattn: %d tokens are computed anew, not swapped: %s", tokens, error)
            return False
        self._counts["swapped_out"] += 1
        self._counts["swap_bytes_out"] += end * self._arenas
        return True

    def load(self, request_id: str, row: int | None, first: int, end: int) -> bool:
        """Copy the blocks of the tokens ``[first, end)`` to a row; return whether that was done.

        The host's copy goes with it.
        """
        if request_id not in self._data or row is None:
            return False
        block = self._memory.block_size
        begin, stop = self._bytes(first // block), self._bytes(-(-end // block))
        self._memory.join()
        try:
            self._copy_in(*self._data[request_id], row, begin, stop)
        except RuntimeError as error:
            _log.warning("pyvattn: %d swapped tokens are computed anew: %s", end - first, error)
            return False
        finally:
            self.drop(request_id)
        self._counts["swapped_in"] += 1
        self._counts["swap_bytes_in"] += (stop - begin) * self._arenas
        return True

    def drop(self, request_id: str) -> None:
        """Let go of a request's host memory, if it has any."""
        held = self._data.pop(request_id, None)
        if held is not None:
            self._pool.give(held[0])

    def note(self, *, refused: int = 0, cheaper: int = 0) -> None:
        """Count requests that found no room, and those that are cheaper to compute anew."""
        self._counts["swap_refused"] += refused
        self._counts["swap_dearer"] += cheaper

    def close(self) -> None:
        """Let go of all of it."""
        self._data.clear()
        self._pool.close()
        self._blocks = 0

    def stats(self) -> dict[str, int | float]:
        """Count requests and bytes that were copied, and host memory that they take now."""
        held = self._bytes(self._blocks) * self._arenas - self._pool.free_bytes
        return {
            **self._counts,
            "swapped_now": len(self._data),
            "swap_host_bytes": held,
            "swap_token_seconds": self.rates.copying or 0.0,
            "compute_token_seconds": self.rates.computing or 0.0,
        }

    def reset_stats(self) -> None:
        """Count from here on."""
        self._counts = dict.fromkeys(
            (
                "swapped_out",
                "swap_refused",
                "swap_dearer",
                "swapped_in",
                "swap_bytes_out",
                "swap_bytes_in",
            ),
            0,
        )

    def _copied(self, row: int, end: int) -> Piece:
        """Return so many bytes of each arena on their way to the host."""
        piece = self._pool.take(end * self._arenas)
        try:
            for arena, there in enumerate(self._views(row, 0, end)):
                done = 0
                for here in self._pool.views(piece, arena * end, (arena + 1) * end):
                    _copy(here, there[done : done + len(here)])
                    done += len(here)
        except BaseException:
            self._pool.give(piece)
            raise
        return piece

    def _copy_in(self, piece: Piece, size: int, row: int, begin: int, stop: int) -> None:
        """Copy the bytes ``[begin, stop)`` of each arena's ``size`` back."""
        for arena, there in enumerate(self._views(row, begin, stop)):
            done = 0
            for here in self._pool.views(piece, arena * size + begin, arena * size + stop):
                _copy(there[done : done + len(here)], here)
                done += len(here)

    def _views(self, row: int, begin: int, stop: int) -> tuple[Any, ...]:
        (views,) = self._memory.rows._tensors.views(row, [(begin, stop)])
        return views

    def _measured(self, make_event: Callable[[], Event] | None) -> float | None:
        """Return the seconds that a token takes to the host and back, of the null row's.

        It has the null block everywhere, which so is what it was.
        """
        blocks = min(_MEASURED // (self._arenas * self._page), self._memory.positions, self._blocks)
        if not blocks:
            return None
        end = self._bytes(blocks)
        for _ in range(2):  # the first warms up
            before, began = _recorded(make_event), perf_counter()
            piece = self._copied(0, end)
            self._copy_in(piece, end, 0, 0, end)
            after = _recorded(make_event)
            if before is None or after is None:
                seconds = perf_counter() - began
            else:
                after.synchronize()
                seconds = before.elapsed_time(after) / 1e3
            self._pool.give(piece)
        return seconds / (blocks * self._memory.block_size)

    def _bytes(self, blocks: int) -> int:
        return blocks * self._page


def _copy(target: Any, source: Any) -> None:
    target.copy_(source, non_blocking=True)


def _recorded(make_event: Callable[[], Event] | None) -> Event | None:
    if make_event is None:
        return None
    event = make_event()
    event.record()
    return event
