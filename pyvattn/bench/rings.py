# SPDX-License-Identifier: Apache-2.0
"""``bench rings``: windows in rings against the same windows on plain rows.

The same kernels attend to as many tokens of as many layers, in turn, replayed as CUDA graphs where
they can be captured. And what the rings cost the driver once they are full.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

from pyvattn.arguments import Settings, check_type
from pyvattn.bench.report import Measure
from pyvattn.bench.timing import interleave, ratios, summarise
from pyvattn.cache import KVCache, Slot
from pyvattn.gpu_timing import in_graphs, interleave_on_gpu, require_gpu, require_torch
from pyvattn.layer_group import LayerGroup
from pyvattn.resolve import check_device
from pyvattn.spec import CacheSpec

_ROWS, _RINGS = "plain rows", "rings"
# At most this much of the time on plain rows.
_AS_FAST = 1.02
_STEPS = 64
_CPU = "cpu"


@dataclass(frozen=True)
class Shape:
    """The layers of a model that attend within a window."""

    q_heads: int
    kv_heads: int
    head_dim: int
    window: int


SHAPES: Mapping[str, Shape] = {
    "Gemma-3-27B": Shape(32, 16, 128, 1024),
    "gpt-oss-20b": Shape(64, 8, 64, 128),
}


@dataclass(frozen=True)
class Options(Settings, least={"rounds": 3, "rows": 1, "tokens": 1, "layers": 1}):
    """``rows`` of ``tokens`` in ``layers`` of each model.

    ``kernel`` names kernels, none: every one that has windows. ``device`` is as
    :class:`pyvattn.KVCache` takes it. Kernels whose ``rounds`` would take longer than ``seconds``
    on a GPU get fewer, seven at least.
    """

    device: str = "cuda:0"
    driver: str = "auto"
    page_size: str = "auto"
    kernel: Sequence[str] = ()
    layers: int = 8
    rows: int = 32
    tokens: int = 4096
    rounds: int = 31
    seconds: float = 5.0


@dataclass(frozen=True)
class _Filled:
    """A cache with tokens in every row."""

    cache: KVCache
    slots: list[Slot]

    def close(self) -> None:
        for slot in self.slots:
            self.cache.release(slot)
        self.cache.close()


def measure(options: Options) -> Iterator[Measure]:
    """Yield every measure. Raises DriverUnavailable where the device is a GPU that is not there."""
    check_type("options", options, Options)
    device = check_device(options.device)
    torch = require_gpu(int(device.partition(":")[2] or 0)) if device != _CPU else require_torch()
    for name, shape in SHAPES.items():
        yield from _measure_model(torch, options, name, shape)


def _measure_model(torch: Any, options: Options, name: str, shape: Shape) -> Iterator[Measure]:
    with ExitStack() as stack:
        caches = {
            kind: stack.enter_context(closing(_filled(options, shape, kind == _RINGS)))
            for kind in (_ROWS, _RINGS)
        }
        pieces = {
            f"decode, {options.rows} x {options.tokens:,} tokens": (options.rows, 1),
            f"a piece of a prompt behind {options.tokens:,} tokens": (1, _piece(caches, options)),
        }
        for title, (rows, queries) in pieces.items():
            yield from _compare(torch, options, f"{name}, {title}", shape, caches, rows, queries)
        yield _calls(name, caches[_RINGS], options)


def _piece(caches: Mapping[str, _Filled], options: Options) -> int:
    """Return the most tokens that may be appended to a ring before they attend."""
    chunk = caches[_RINGS].cache.chunk_tokens
    return min(options.tokens, options.tokens if chunk is None else chunk)


def _filled(options: Options, shape: Shape, ring: bool) -> _Filled:
    """Return a cache with random tokens in every row."""
    layers = range(options.layers)
    group = LayerGroup(layers, shape.kv_heads, shape.head_dim, window=shape.window, ring=ring)
    spec = CacheSpec(
        groups=[group],
        dtype="bfloat16",
        max_slots=options.rows,
        max_tokens=options.tokens + _STEPS + 1,
    )
    needed = options.rows * spec.row_bytes
    cache = KVCache(
        spec,
        device=options.device,
        driver=options.driver,
        page_size=options.page_size,
        layout="layer",
        memory=2 * needed + (256 << 20),
        read_ahead=0,
    )
    try:
        slots = [cache.admit(options.tokens) for _ in range(options.rows)]
        tokens = min(options.tokens, cache.geometries[0].ring_tokens or options.tokens)
        for layer in layers:
            for tensor in cache.layer(layer):
                tensor[:, :tokens].normal_()
    except BaseException:
        cache.close()
        raise
    return _Filled(cache, slots)


def _compare(
    torch: Any,
    options: Options,
    title: str,
    shape: Shape,
    caches: Mapping[str, _Filled],
    rows: int,
    queries: int,
) -> Iterator[Measure]:
    from pyvattn.attention import kernel_infos
    from pyvattn.errors import UnsupportedError

    size = (rows, queries, shape.q_heads, shape.head_dim)
    q = torch.randn(size, dtype=torch.bfloat16, device=options.device)
    for info in kernel_infos():
        skipped = info.unavailable or info.name == "reference"
        if info.name not in options.kernel if options.kernel else skipped:
            continue
        calls = {
            kind: _over_layers(torch, q, filled.cache, options, info.name)
            for kind, filled in caches.items()
        }
        try:
            for call in calls.values():
                call()
        except UnsupportedError:
            if options.kernel:
                raise
            continue
        seconds, note = _timed(calls, options)
        for kind, values in seconds.items():
            each = f"{info.name}, {title}: {kind}"
            yield Measure.of(each, summarise(values), "ms", scale=1e3, note=note)
        ratio = ratios(seconds[_RINGS], seconds[_ROWS])
        name = f"{info.name}, {title}: {_RINGS} / {_ROWS}"
        yield Measure.of(name, ratio, "times", at_most=_AS_FAST if options.device != _CPU else None)


def _over_layers(
    torch: Any, q: Any, cache: KVCache, options: Options, kernel: str
) -> Callable[[], None]:
    from pyvattn.attention import attend

    slots = torch.arange(q.shape[0], dtype=torch.int32, device=q.device)
    lengths = torch.full_like(slots, options.tokens)

    def call() -> None:
        for layer in range(options.layers):
            attend(q, cache, layer, slots, lengths, kernel=kernel)

    return call


def _timed(
    calls: dict[str, Callable[[], None]], options: Options
) -> tuple[dict[str, list[float]], str]:
    """Return seconds a call, and how the calls were made."""
    of = f"{options.layers} layers"
    if options.device == _CPU:
        return interleave(calls, rounds=options.rounds), of
    replays = in_graphs(calls)
    seconds = interleave_on_gpu(
        replays or calls, rounds=options.rounds, total_seconds=options.seconds
    )
    return seconds, f"{of}, {'in a CUDA graph' if replays else 'launched from Python'}"


def _calls(name: str, filled: _Filled, options: Options) -> Measure:
    """Return how many driver calls a token of a request takes once its ring is full."""
    before = filled.cache.stats()
    for step in range(1, _STEPS + 1):
        filled.cache.step(dict.fromkeys(filled.slots, options.tokens + step))
    after = filled.cache.stats()
    made = after.map_calls + after.unmap_calls - before.map_calls - before.unmap_calls
    each = made / (_STEPS * options.rows)
    return Measure(f"{name}: driver calls a token and request, rings", each, "calls", at_most=0)
