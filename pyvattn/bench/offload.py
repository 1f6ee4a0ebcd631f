# SPDX-License-Identifier: Apache-2.0
"""``bench offload``: a request to host memory and back, against one copy and against blocks.

By turns, in one process: ``KVCache.offload`` and ``KVCache.restore``, one copy of as many bytes
between the same kinds of memory, and a copy for each block of 16 tokens in each layer, K and V of
a layer side by side, as what moves a paged cache's blocks has to do. ``against="vllm"`` adds the
transfers of vLLM's own CPU offload. Each is timed from the call until the last byte is there.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pyvattn.arguments import Settings, check_type
from pyvattn.bench import vllm_offload
from pyvattn.bench.block_copies import BlockCopies
from pyvattn.bench.copies import counting, filled_slot, is_on_host, request_spec
from pyvattn.bench.report import Measure, Setup
from pyvattn.bench.timing import ratios, summarise
from pyvattn.cache import KVCache
from pyvattn.errors import ConfigError
from pyvattn.gpu_timing import require_gpu, require_torch
from pyvattn.samples import BLOCK_TOKENS
from pyvattn.spec import CacheSpec

_MOST_COPIES = 64
_LEAST_RATE = 0.9
_ONE, _OURS, _BLOCKS = "one copy", "rows", f"blocks of {BLOCK_TOKENS} tokens"
_UNMAPPED = "rows, mapped anew"


@dataclass(frozen=True)
class Options(Settings, least={"tokens": BLOCK_TOKENS, "rounds": 3}):
    """One request of ``tokens`` tokens, in ``layers`` layers of the shape of Llama-3-8B.

    ``driver`` ``"host"``, or an emulated one, needs no GPU. ``against`` ``"vllm"`` needs vLLM and
    a GPU's driver.
    """

    driver: str = "cumem"
    page_size: str = "auto"
    layout: str = "auto"
    device: int = 0
    tokens: int = 32000
    layers: int = 32
    rounds: int = 7
    against: str | None = None


def measure(options: Options) -> Iterator[Measure | Setup]:
    """Yield every measure. Raises DriverUnavailable where the driver is not."""
    check_type("options", options, Options)
    spec = request_spec(options.tokens, options.layers)
    on_host = is_on_host(options.driver)
    if options.against is not None:
        yield Setup("vllm", {"version": _checked_vllm(options)})
    torch = require_torch() if on_host else require_gpu(options.device)
    turns = _Turns(torch, options, spec, on_host)
    try:
        copies = turns.counted()
        collecting = gc.isenabled()
        gc.disable()
        try:
            for _ in range(options.rounds):
                turns.take()
        finally:
            if collecting:
                gc.enable()
    finally:
        turns.close()
    yield from _report(options, turns, copies)


def _checked_vllm(options: Options) -> str:
    """Return the version of the vLLM that is measured too."""
    if options.against != "vllm":
        raise ConfigError(f"against={options.against!r}: use 'vllm', or leave it out")
    if is_on_host(options.driver):
        raise ConfigError(
            f"driver={options.driver!r}: vLLM's offload copies between a GPU and the host, use "
            "the driver of a GPU"
        )
    vllm_offload.check_tokens(options.tokens)
    return vllm_offload.version()


class _Turns:
    """The cache with one request, buffers of as many bytes, and the seconds that each took."""

    def __init__(self, torch: Any, options: Options, spec: CacheSpec, on_host: bool) -> None:
        self._torch, self._options, self.on_host = torch, options, on_host
        self._device = "cpu" if on_host else f"cuda:{options.device}"
        self._spec = spec
        self.bytes = options.tokens * self._spec.token_bytes
        settings = () if options.against is None else vllm_offload.SETTINGS
        names = (_ONE, _OURS, _BLOCKS, *(one.name for one in settings))
        self.out: dict[str, list[float]] = {name: [] for name in names}
        self.back: dict[str, list[float]] = {name: [] for name in (*self.out, _UNMAPPED)}
        self.returned: list[float] = []
        size = (self.bytes,)
        self._there = torch.ones(size, dtype=torch.uint8, device=self._device)
        self._here = torch.ones(size, dtype=torch.uint8, pin_memory=not on_host)
        self._blocks = BlockCopies(
            self._there, self._here, BLOCK_TOKENS * self._spec.token_bytes_per_layer
        )
        self.vllm = {
            one.name: vllm_offload.VllmOffload(self._there, options.layers, spec.token_bytes, one)
            for one in settings
        }
        self._cache = self._open()
        self._slot = filled_slot(self._cache)
        self.layout = self._cache.geometries[0].layout_name
        # The first of all allocates its pinned memory, which takes longer than the copies.
        self.first, kept = self._timed(lambda: self._cache.offload(self._slot))
        del kept
        for vllm in self.vllm.values():
            vllm.out()
            vllm.back()

    def counted(self) -> tuple[int, int, int]:
        """Return the copies of one offload, of one restore, and of one that maps first."""
        with counting(self._torch) as out:
            kept = self._cache.offload(self._slot)
        self._cache.release(self._slot)
        with counting(self._torch) as back:
            self._slot = self._cache.restore(kept)
        with self._open() as fresh:
            with counting(self._torch) as anew:
                slot = fresh.restore(kept)
            fresh.release(slot)
        return out.copies, back.copies, anew.copies

    def take(self) -> None:
        """Let each of them copy once in both directions."""
        there, here = self._there, self._here
        self._note(self.out, _ONE, lambda: here.copy_(there, non_blocking=True))
        kept = self._note(self.out, _OURS, self._offload)
        self._note(self.out, _BLOCKS, self._blocks.there)
        for name, vllm in self.vllm.items():
            self._note(self.out, name, vllm.out)
        self._note(self.back, _ONE, lambda: there.copy_(here, non_blocking=True))
        self._cache.release(self._slot)
        self._cache.drain()
        self._slot = self._note(self.back, _OURS, lambda: self._cache.restore(kept))
        self._note(self.back, _BLOCKS, self._blocks.back)
        for name, vllm in self.vllm.items():
            self._note(self.back, name, vllm.back)
        # Rows whose memory has gone to others: here no page of theirs was ever mapped.
        with self._open() as fresh:
            slot = self._note(self.back, _UNMAPPED, lambda: fresh.restore(kept))
            fresh.release(slot)

    def close(self) -> None:
        """Close the cache."""
        self._cache.release(self._slot)
        self._cache.close()
        for vllm in self.vllm.values():
            vllm.close()

    def _open(self) -> KVCache:
        options = self._options
        return KVCache(
            self._spec,
            device=self._device,
            driver=options.driver,
            page_size=options.page_size,
            layout=options.layout,
            memory=2 * self._spec.row_bytes,
        )

    def _offload(self) -> Any:
        began = time.perf_counter()
        kept = self._cache.offload(self._slot)
        self.returned.append(time.perf_counter() - began)
        return kept

    def _note(self, into: dict[str, list[float]], name: str, call: Callable[[], Any]) -> Any:
        seconds, result = self._timed(call)
        into[name].append(seconds)
        return result

    def _timed(self, call: Callable[[], Any]) -> tuple[float, Any]:
        self._wait()
        began = time.perf_counter()
        result = call()
        self._wait()
        return time.perf_counter() - began, result

    def _wait(self) -> None:
        if not self.on_host:
            self._torch.cuda.synchronize()


def _report(options: Options, turns: _Turns, copies: tuple[int, int, int]) -> Iterator[Measure]:
    request = f"{options.tokens:,} tokens"
    note = f"{turns.bytes / 2**30:.3g} GiB, {options.driver}, layout {turns.layout}"
    # On the host the first touch of each page takes longer than all copies.
    wanted = () if turns.on_host else (_OURS, _UNMAPPED)
    for way, seconds, count in (("out", turns.out, copies[0]), ("back", turns.back, copies[1])):
        for name, each in seconds.items():
            rates = summarise([turns.bytes / one / 1e9 for one in each])
            in_words = turns.vllm[name].in_words if name in turns.vllm else note
            yield Measure.of(f"{request} {way}: {name}", rates, "GB/s", note=in_words)
        yield Measure(f"{request} {way}: copies", count, "copies", at_most=_MOST_COPIES)
        for name in seconds:
            if name == _ONE:
                continue
            yield Measure.of(
                f"{request} {way}: rate of {name} / {_ONE}",
                ratios(seconds[_ONE], seconds[name]),
                "times",
                at_least=_LEAST_RATE if name in wanted else None,
            )
        for name in (_BLOCKS, *turns.vllm):
            yield Measure.of(
                f"{request} {way}: rate of {_OURS} / {name}",
                ratios(seconds[name], seconds[_OURS]),
                "times",
            )
    yield Measure(
        f"{request} back: copies of {_UNMAPPED}", copies[2], "copies", at_most=_MOST_COPIES
    )
    yield Measure.of(f"{request}: offload() returns after", summarise(turns.returned), "ms",
                     scale=1e3)  # fmt: skip
    yield Measure(
        f"{request}: the first offload(), which allocates host memory", turns.first * 1e3, "ms"
    )
