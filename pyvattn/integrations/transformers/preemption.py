# SPDX-License-Identifier: Apache-2.0
"""Where K and V of preempted requests go: to host memory and back, or nowhere."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pyvattn.arguments import check_name
from pyvattn.errors import ConfigError, OutOfMemory
from pyvattn.integrations.transformers.rates import FastestRate
from pyvattn.logs import logger_of
from pyvattn.swap import Offloaded, byte_ranges, pinned_bytes
from pyvattn.text import shown
from pyvattn.units import format_size, parse_size

if TYPE_CHECKING:
    from pyvattn.cache import KVCache, Slot
    from pyvattn.integrations.transformers.ranks import Ranks
    from pyvattn.integrations.transformers.request import Request

_log = logger_of(__name__)

MODES = ("auto", "swap", "recompute")
# Until one was timed: half of what PCIe 5.0 copies to and from pinned memory.
_ASSUMED_BYTES_A_SECOND = 25e9


@dataclass(frozen=True)
class Preemptions:
    """What became of requests that had to leave for want of memory, so far.

    ``recomputed`` of them left nothing behind and are computed anew; ``swapped`` went to host
    memory. ``refused`` are those of the recomputed for which host memory was short. ``bytes_out``
    were copied to the host and ``bytes_in`` back: less, where others still had the beginning.
    ``swapped_now`` wait in host memory at the moment, in ``host_bytes`` of it.
    """

    recomputed: int = 0
    swapped: int = 0
    refused: int = 0
    bytes_out: int = 0
    bytes_in: int = 0
    swapped_now: int = 0
    host_bytes: int = 0


class HostSwap:
    """Copies preempted requests to host memory, within a bound, and back.

    On a GPU the copies run on a stream of their own, beside the steps of other requests.
    """

    def __init__(
        self, cache: KVCache, device: torch.device, mode: str, memory: int | str, ranks: Ranks
    ) -> None:
        check_name("preemption", mode, such_as="auto")
        if mode not in MODES:
            raise ConfigError(f"preemption={shown(mode)}: use one of {', '.join(MODES)}")
        self._cache = cache
        self._device = device
        self._mode = mode
        self._limit = parse_size(memory, "swap_memory")
        self._ranks = ranks
        self._stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._counts = dict.fromkeys(
            ("recomputed", "swapped", "refused", "bytes_out", "bytes_in", "swapped_now"), 0
        )
        self._held = 0
        #: Tokens of prompts that the model runs in a second, and bytes that come back.
        self.prefill_rate = FastestRate(device)
        self.copy_rate = FastestRate(device, _ASSUMED_BYTES_A_SECOND)

    def out(self, request: Request) -> object:
        """Copy what a request has to host memory, if that is cheaper than computing it anew.

        Returns what its slot must outlive, as ``release(after=...)`` takes it.
        """
        kept = self._offloaded(request)
        # Ranks know of rates and of host memory what they saw: all of them copy, or none.
        request.swapped = kept if self._ranks.all(kept is not None) else None
        if request.swapped is None:
            self._counts["recomputed"] += 1
            return None
        self._counts["swapped"] += 1
        self._counts["swapped_now"] += 1
        self._counts["bytes_out"] += request.swapped.bytes
        self._held += self._host_bytes(each.numel() for each in request.swapped.data)
        return self._stream

    def back(self, request: Request, slot: Slot, hit: int) -> int:
        """Copy to a slot, all backed, what it lacks; returns how many tokens are there then.

        The first ``hit`` are there already. What is launched from now on sees the others.
        """
        kept = request.swapped
        if kept is None:
            return hit
        if hit < kept.length:
            size = sum(end - first for first, end in self._ranges(kept.fronts, kept.length, hit))
            with self._beside(), self.copy_rate.timing(size):
                self._cache._refill(slot, kept, hit)
            if self._stream is not None:
                torch.cuda.current_stream(self._device).wait_stream(self._stream)
            self._counts["bytes_in"] += size
        self.drop(request)
        return max(hit, kept.length)

    def drop(self, request: Request) -> None:
        """Let go of the host memory of a request, if it has any."""
        kept, request.swapped = request.swapped, None
        if kept is not None:
            self._counts["swapped_now"] -= 1
            self._held -= self._host_bytes(each.numel() for each in kept.data)

    def stats(self) -> Preemptions:
        """Count requests and bytes."""
        return Preemptions(**self._counts, host_bytes=self._held)

    def _offloaded(self, request: Request) -> Offloaded | None:
        slot, tokens = request.slot, request.cached
        assert slot is not None
        if self._mode == "recompute" or not tokens:
            return None
        if self._cache.spec.states:
            # Of a step that failed before the model ran its token.
            self._cache.step({slot: tokens})
        if self._cache.chunk_tokens is not None and self._cache.length(slot) != tokens:
            # A ring is where the slot's length says, and a prompt that is half computed is not.
            return None
        fronts = self._cache._native.fronts(slot)
        sizes = [end - first for first, end in self._ranges(fronts, tokens)]
        if self._mode == "auto" and not self._is_cheaper(tokens, sum(sizes)):
            return None
        if self._held + self._host_bytes(sizes) > self._limit:
            self._refuse(tokens, f"swap_memory={format_size(self._limit)} is in use")
            return None
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
        try:
            with self._beside():
                return self._cache.offload(slot, tokens)
        except OutOfMemory as error:
            self._refuse(tokens, str(error))
            return None

    def _refuse(self, tokens: int, why: str) -> None:
        self._counts["refused"] += 1
        _log.debug("%d tokens are computed anew, not swapped: %s", tokens, why)

    def _is_cheaper(self, tokens: int, size: int) -> bool:
        """Whether copying there and back takes less time than running the tokens as a prompt."""
        copied, run = self.copy_rate.a_second, self.prefill_rate.a_second
        return copied is not None and run is not None and 2 * size / copied < tokens / run

    def _ranges(self, fronts: Iterable[int], tokens: int, first: int = 0) -> list[tuple[int, int]]:
        """Return bytes in all arenas of each group, from the front or ``first`` token on.

        Those of the states are the last.
        """
        begins = [min(tokens, max(front, first)) for front in fronts]
        geometries = self._cache.geometries
        ranges = zip(byte_ranges(geometries, begins, tokens), geometries, strict=True)
        found = [(begin * g.arenas, end * g.arenas) for (begin, end), g in ranges]
        return [*found, (0, self._cache._state_bytes)]

    def _host_bytes(self, sizes: Iterable[int]) -> int:
        """Return what torch takes from the host for these, pinned on a GPU."""
        return sum(sizes if self._stream is None else map(pinned_bytes, sizes))

    def _beside(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)
