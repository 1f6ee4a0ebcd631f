# SPDX-License-Identifier: Apache-2.0
"""Tokens on their way from the device to the host."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pyvattn.cache import Slot
    from pyvattn.integrations.transformers.request import Request


class Readback:
    """The new tokens of one step, copied while the device goes on, and whose they are."""

    def __init__(self) -> None:
        self.requests: list[tuple[Request, Slot | None]] = []
        self._host: list[Tensor] = []
        self._on_device = False
        self._arrived: Any = None

    def add(self, requests: Sequence[Request], tokens: Tensor) -> None:
        """Begin to copy ``[requests]`` tokens, which may be overwritten by later work."""
        host = torch.empty(
            tokens.shape, dtype=tokens.dtype, device="cpu", pin_memory=tokens.is_cuda
        )
        host.copy_(tokens, non_blocking=True)
        self._on_device = tokens.is_cuda
        self._host.append(host)
        self.requests += [(request, request.slot) for request in requests]

    def begin(self) -> None:
        """Mark the place in the stream after which every token has arrived."""
        if self._on_device:
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def tokens(self) -> Iterator[tuple[Request, Slot | None, int]]:
        """Wait for the tokens; yield each with its request and the slot it was in then."""
        if self._arrived is not None:
            self._arrived.synchronize()
        values = [token for host in self._host for token in host.tolist()]
        for (request, slot), token in zip(self.requests, values, strict=True):
            yield request, slot, token
