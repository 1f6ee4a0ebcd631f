# SPDX-License-Identifier: Apache-2.0
"""How much a device does in a second, measured while it works."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class FastestRate:
    """The most of something that a device has done in a second so far: tokens, or bytes.

    The fastest time is the one that nothing else disturbed: no capture, no small batch.
    ``assumed`` is what counts before anything was timed. Nothing here waits for the device.
    """

    def __init__(self, device: torch.device, assumed: float | None = None) -> None:
        self._on_gpu = device.type == "cuda"
        self._assumed = assumed
        self._fastest: float | None = None
        self._pending: list[tuple[int, Any, Any]] = []

    @contextmanager
    def timing(self, amount: int) -> Iterator[None]:
        """Time what is launched inside, on torch's stream, as ``amount`` done."""
        if not self._on_gpu:
            began = time.perf_counter()
            yield
            self.note(amount, time.perf_counter() - began)
            return
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        yield
        end.record()
        self._settle()
        self._pending.append((amount, begin, end))

    def note(self, amount: int, seconds: float) -> None:
        """Take it that ``amount`` was done in so many seconds."""
        if amount and seconds > 0:
            self._fastest = max(self._fastest or 0.0, amount / seconds)

    @property
    def a_second(self) -> float | None:
        """What is done in a second; ``None`` where nobody knows yet."""
        self._settle()
        return self._assumed if self._fastest is None else self._fastest

    def _settle(self) -> None:
        while self._pending and self._pending[0][2].query():
            amount, begin, end = self._pending.pop(0)
            self.note(amount, begin.elapsed_time(end) / 1e3)
