# SPDX-License-Identifier: Apache-2.0
"""Captures work as CUDA graphs, with torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_capturing = ContextVar("_capturing", default=False)


def is_capturing() -> bool:
    """Whether this is the work of :meth:`GraphPool.capture`, its first run included.

    What is chosen by this has been loaded when the capture begins.
    """
    return _capturing.get()


@contextmanager
def _marked() -> Iterator[None]:
    before = _capturing.set(True)
    try:
        yield
    finally:
        _capturing.reset(before)


class GraphPool:
    """CUDA graphs that share memory: no two of them may run at once.

    ``device`` is a torch.device, by default the current one.
    """

    def __init__(self, torch: Any, device: Any = None) -> None:
        self._torch, self._device, self._pool = torch, device, None

    def capture(self, work: Callable[[], object]) -> Callable[[], None]:
        """Run ``work`` once, then capture it; returns what replays it on the current stream.

        Raises what torch does where it cannot be captured, a ``RuntimeError``.
        """
        cuda = self._torch.cuda
        here, graph = cuda.current_stream(self._device), cuda.CUDAGraph()
        # The first run loads kernels and sets libraries up, which no capture may do.
        side = cuda.Stream(self._device)
        side.wait_stream(here)
        with cuda.stream(side), _marked():
            work()
        here.wait_stream(side)
        try:
            # The capture is of this thread alone: a mapper thread goes on mapping meanwhile.
            mode = "thread_local"
            with cuda.graph(graph, pool=self._pool, capture_error_mode=mode), _marked():
                work()
        except RuntimeError:
            cuda.set_stream(here)  # torch stays on its own where a capture ends badly
            raise
        self._pool = graph.pool()
        replay: Callable[[], None] = graph.replay
        return replay
