# SPDX-License-Identifier: Apache-2.0
"""``bench transfer``: a request from one cache to another, against one copy and against blocks.

By turns, in one process: ``KVCache.restore`` of another cache's ``dense_views``, one copy of as
many bytes between buffers of the two devices, and a copy for each block of 16 tokens in each layer,
K and V of a layer side by side. Each is timed from the call until the last byte is there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from pyvattn.arguments import Settings, check_type
from pyvattn.bench.block_copies import BlockCopies
from pyvattn.bench.copies import counting, filled_slot, is_on_host, request_spec
from pyvattn.bench.report import Measure
from pyvattn.bench.timing import ratios, summarise
from pyvattn.cache import KVCache
from pyvattn.errors import ConfigError
from pyvattn.gpu_timing import require_gpu, require_torch
from pyvattn.samples import BLOCK_TOKENS
from pyvattn.spec import CacheSpec

_LEAST_RATE = 0.9
_LEAST_OVER_BLOCKS = 5.0
_ONE, _OURS, _BLOCKS = "one copy", "rows", f"blocks of {BLOCK_TOKENS} tokens"


@dataclass(frozen=True)
class Options(Settings, least={"tokens": BLOCK_TOKENS, "rounds": 3, "to_device": 0}):
    """One request of ``tokens`` tokens, in ``layers`` layers of the shape of Llama-3-8B.

    It goes from CUDA device ``device`` to ``to_device``, whose cache lets the other one write to
    it with ``peer_access``. ``driver`` ``"host"``, or an emulated one, needs no GPU.
    """

    driver: str = "cumem"
    page_size: str = "auto"
    layout: str = "auto"
    device: int = 0
    to_device: int = 1
    peer_access: bool = False
    tokens: int = 32000
    layers: int = 32
    rounds: int = 7


def measure(options: Options) -> Iterator[Measure]:
    """Yield every measure. Raises DriverUnavailable where the driver is not."""
    check_type("options", options, Options)
    spec = request_spec(options.tokens, options.layers)
    on_host = is_on_host(options.driver)
    if not on_host and options.to_device == options.device:
        raise ConfigError(f"to_device={options.to_device} is the device itself: use another one")
    torch = require_torch() if on_host else require_gpu(options.device)
    if not on_host:
        require_gpu(options.to_device)
    with ExitStack() as stack:
        turns = _Turns(torch, options, spec, on_host, stack)
        copies = turns.counted()
        for _ in range(options.rounds):
            turns.take()
        yield from _report(options, turns, copies)


class _Turns:
    """Two caches, buffers of as many bytes, and the seconds that each way took."""

    def __init__(
        self, torch: Any, options: Options, spec: CacheSpec, on_host: bool, stack: ExitStack
    ) -> None:
        self._torch, self.on_host = torch, on_host
        self.bytes = options.tokens * spec.token_bytes
        self.seconds: dict[str, list[float]] = {name: [] for name in (_ONE, _OURS, _BLOCKS)}
        devices = [f"cuda:{number}" for number in (options.device, options.to_device)]
        if on_host:
            devices = ["cpu", "cpu"]
        else:
            # Of the device that copies are launched on, also where they are CUDA's own.
            stack.enter_context(torch.cuda.device(options.device))
        self._devices = devices
        self._from, self._to = (
            torch.ones((self.bytes,), dtype=torch.uint8, device=device) for device in devices
        )
        self._blocks = BlockCopies(self._from, self._to, BLOCK_TOKENS * spec.token_bytes_per_layer)
        self._source, self._target = (
            stack.enter_context(
                KVCache(
                    spec,
                    device=device,
                    driver=options.driver,
                    page_size=options.page_size,
                    layout=options.layout,
                    memory=2 * spec.row_bytes,
                    peer_access=options.peer_access and place == 1,
                )
            )
            for place, device in enumerate(devices)
        )
        self._slot = filled_slot(self._source)
        self.layout = self._source.geometries[0].layout_name
        self.direct = on_host or devices[0] in self._target.peers

    def counted(self) -> tuple[int, int]:
        """Return the dense views of a slot, and the copies that moving them takes."""
        views = len(self._source.dense_views(self._slot).views)
        # The first maps what it copies to, in pieces.
        self._target.release(self._move())
        self._target.drain()
        with counting(self._torch) as moving:
            self._target.release(self._move())
        return views, moving.copies

    def take(self) -> None:
        """Let each way move the bytes once, with pages under the row from the round before."""
        self._note(_ONE, lambda: self._to.copy_(self._from, non_blocking=True))
        self._target.drain()
        self._target.release(self._note(_OURS, self._move))
        self._note(_BLOCKS, self._blocks.there)

    def _move(self) -> Any:
        return self._target.restore(self._source.dense_views(self._slot))

    def _note(self, name: str, call: Callable[[], Any]) -> Any:
        self._wait()
        began = time.perf_counter()
        result = call()
        self._wait()
        self.seconds[name].append(time.perf_counter() - began)
        return result

    def _wait(self) -> None:
        if not self.on_host:
            for device in self._devices:
                self._torch.cuda.synchronize(device)


def _report(options: Options, turns: _Turns, copies: tuple[int, int]) -> Iterator[Measure]:
    request = f"{options.tokens:,} tokens"
    way = "straight" if turns.direct else "by way of torch's memory"
    note = f"{turns.bytes / 2**30:.3g} GiB, {options.driver}, layout {turns.layout}, rows {way}"
    for name, seconds in turns.seconds.items():
        rates = summarise([turns.bytes / one / 1e9 for one in seconds])
        yield Measure.of(f"{request}: {name}", rates, "GB/s", note=note)
    yield Measure(f"{request}: dense views", copies[0], "views")
    yield Measure(f"{request}: copies of rows", copies[1], "copies")
    least = {_ONE: _LEAST_RATE, _BLOCKS: _LEAST_OVER_BLOCKS}
    for name, at_least in least.items():
        yield Measure.of(
            f"{request}: rate of {_OURS} / {name}",
            ratios(turns.seconds[name], turns.seconds[_OURS]),
            "times",
            # On the host both are memcpy: nothing is launched, and blocks cost no more than rows.
            at_least=None if turns.on_host else at_least,
        )
