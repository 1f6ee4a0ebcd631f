# SPDX-License-Identifier: Apache-2.0
"""``bench attention``: kernels on our memory, on cudaMalloc, and paged.

Every kernel attends once to each of 32 layers, so that the TLB sees what it sees in a
model. Each alternative runs in every round, replayed as a CUDA graph where the kernel
can be captured; the device is timed with CUDA events.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pyvattn.arguments import Settings, check_type
from pyvattn.bench.paged import block_sizes, paged_alternatives, paged_name
from pyvattn.bench.report import Measure
from pyvattn.bench.timing import ratios, summarise
from pyvattn.cache import KVCache
from pyvattn.errors import DriverUnavailable
from pyvattn.geometry import Geometry, TensorView
from pyvattn.gpu_timing import in_graphs, interleave_on_gpu, require_gpu
from pyvattn.samples import BLOCK_TOKENS
from pyvattn.spec import CacheSpec
from pyvattn.units import format_size

Q_HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
_OURS, _PLAIN = "ours", "cudaMalloc"
# Our layout in memory of cudaMalloc: what is left against it is the mapping, not the layout.
_STRIDED = "cudaMalloc, same strides"
# The kernel's own paged form over our rows, which needs no guard.
_BY_TABLE = "ours, by a table"
_TABLE_FORMS = {"flash-attn-3": "flash-attn-3-paged"}
# At most this much of the time on cudaMalloc.
_AS_FAST = {"layer": 1.02, "token": 1.03}
_AS_FAST_STRIDED = 1.02
# Of a decode step attention is less than half: what a table costs it is then below 2 %.
_AS_FAST_BY_TABLE = 1.04


@dataclass(frozen=True)
class Shape:
    """Rows of ``context`` tokens whose last ``queries`` attend."""

    kind: str
    rows: int
    context: int
    queries: int

    @property
    def name(self) -> str:
        """What measures are called."""
        return f"{self.kind}, {self.rows} x {self.context:,} tokens"


SHAPES = (
    Shape("decode", 32, 4096, 1),
    Shape("64 new tokens", 32, 4096, 64),
    Shape("prefill", 1, 16384, 16384),
)


@dataclass(frozen=True)
class Options(Settings, least={"rounds": 3}):
    """``kernel`` names kernels, none: every one available; ``page_size`` may be "auto".

    Kernels whose ``rounds`` would take longer than ``seconds`` get fewer, seven at least.
    """

    driver: str = "cumem"
    page_size: str = "auto"
    layout: str = "layer"
    layers_per_arena: int | None = None
    device: int = 0
    kernel: Sequence[str] = ()
    layers: int = 32
    rounds: int = 31
    seconds: float = 10.0


def measure(options: Options) -> Iterator[Measure]:
    """Yield every measure. Raises DriverUnavailable without a GPU."""
    check_type("options", options, Options)
    torch = require_gpu(options.device)
    for shape in SHAPES:
        # A call of its own, which holds the tensors of this shape and no longer.
        yield from _measure_shape(torch, options, shape)


def _measure_shape(torch: Any, options: Options, shape: Shape) -> Iterator[Measure]:
    # What torch keeps of the last shape's tensors is memory that no driver gets.
    torch.cuda.empty_cache()
    shape = _that_fits(torch, options, shape)
    with _open(options, shape) as cache:
        slots = [cache.acquire(shape.context) for _ in range(shape.rows)]
        cache.step(dict.fromkeys(slots, shape.context))
        tensors = _fill(torch, cache)
        yield from _compare(torch, options, shape, cache, tensors)
        for slot in slots:
            cache.release(slot)


def _that_fits(torch: Any, options: Options, shape: Shape) -> Shape:
    """Return ``shape`` with no more rows than the free memory holds copies of."""
    free, _ = torch.cuda.mem_get_info(options.device)
    row = _copies(options) * _spec(options, shape).row_bytes
    rows = int(0.9 * free // row)  # a tenth is for what kernels write down besides
    if rows == 0:
        raise DriverUnavailable(
            f"{format_size(free)} are free on cuda:{options.device}, and a row of {shape.name} "
            f"needs {format_size(row)}: use fewer --layers"
        )
    return replace(shape, rows=min(shape.rows, rows))


def _copies(options: Options) -> int:
    """Return how often the same tokens lie there: ours, torch's, at our strides, in blocks."""
    from pyvattn.attention import kernel_infos

    kernels = options.kernel or [info.name for info in kernel_infos() if not info.unavailable]
    strided = options.layout != "layer"
    return 2 + strided + max(len(block_sizes(kernel)) for kernel in kernels)


def _spec(options: Options, shape: Shape) -> CacheSpec:
    return CacheSpec(
        options.layers,
        KV_HEADS,
        HEAD_DIM,
        dtype="bfloat16",
        max_slots=shape.rows,
        max_tokens=shape.context,
    )


def _open(options: Options, shape: Shape) -> KVCache:
    spec = _spec(options, shape)
    needed = shape.rows * spec.row_bytes
    return KVCache(
        spec,
        device=f"cuda:{options.device}",
        driver=options.driver,
        page_size=options.page_size,
        layout=options.layout,
        layers_per_arena=options.layers_per_arena,
        memory=needed + needed // 4 + (1 << 30),
    )


def _fill(torch: Any, cache: KVCache) -> dict[str, list[tuple[Any, Any]]]:
    """Return each layer's K and V in both kinds of memory, with the same random tokens."""
    ours, plain = [], []
    for layer in range(cache.spec.layers):
        mapped = cache.layer(layer)
        copies = []
        for tensor in mapped:
            copy = torch.randn(tensor.shape, dtype=tensor.dtype, device=tensor.device)
            tensor.copy_(copy)
            copies.append(copy)
        ours.append(mapped)
        plain.append((copies[0], copies[1]))
    tensors = {_OURS: ours, _PLAIN: plain}
    if cache.layout == "token":
        tensors[_STRIDED] = _strided(torch, cache.geometry, plain)
    return tensors


def _strided(
    torch: Any, geometry: Geometry, layers: list[tuple[Any, Any]]
) -> list[tuple[Any, Any]]:
    """Copy every layer's K and V to where they lie in our arenas, in torch's own memory."""
    like = layers[0][0]
    size = geometry.slots * geometry.row_bytes // like.itemsize
    arenas = [like.new_empty(size) for _ in range(geometry.arenas)]

    def place(tensor: Any, view: TensorView) -> Any:
        first = view.offset // like.itemsize
        return arenas[view.arena].as_strided(view.shape, view.strides, first).copy_(tensor)

    return [
        (place(k, views.k), place(v, views.v))
        for (k, v), views in zip(layers, geometry.views, strict=True)
    ]


def _compare(
    torch: Any,
    options: Options,
    shape: Shape,
    cache: KVCache,
    tensors: dict[str, list[tuple[Any, Any]]],
) -> Iterator[Measure]:
    from pyvattn.attention import kernel_infos
    from pyvattn.attention.problem import Problem
    from pyvattn.attention.registry import choose
    from pyvattn.errors import UnsupportedError

    like = tensors[_PLAIN][0][0]
    q = torch.randn(
        shape.rows, shape.queries, Q_HEADS, HEAD_DIM, dtype=like.dtype, device=like.device
    )
    slots = torch.arange(shape.rows, dtype=torch.int32, device=like.device)
    lengths = torch.full_like(slots, shape.context)
    pages = {_OURS: cache.page_size}
    problems = {
        memory: [
            Problem(q, k, v, slots, lengths, True, HEAD_DIM**-0.5, page_bytes=pages.get(memory))
            for k, v in layers
        ]
        for memory, layers in tensors.items()
    }
    for info in kernel_infos():
        # The reference is no kernel to measure, and a table is measured beside its rows.
        skipped = info.unavailable or info.name in ("reference", *_TABLE_FORMS.values())
        if info.name not in options.kernel if options.kernel else skipped:
            continue
        try:
            kernel = choose(info.name, problems[_OURS][0])
        except UnsupportedError:
            if options.kernel:
                raise
            continue
        alternatives: dict[str, Callable[[], object]] = {
            memory: _over_layers(kernel.attend, layers) for memory, layers in problems.items()
        }
        if (by_table := _table_form(info.name, problems[_OURS][0])) is not None:
            alternatives[_BY_TABLE] = _over_layers(by_table.attend, problems[_OURS])
        try:
            paged = paged_alternatives(torch, info.name, q, lengths, tensors[_PLAIN], shape.context)
            seconds, note = _time({**alternatives, **paged}, options)
        except torch.OutOfMemoryError:
            # What a kernel writes down besides its result is its own affair.
            yield Measure(f"{info.name}, {shape.name}: out of memory", 1, "kernels left out")
        else:
            yield from _report(info.name, shape, cache.layout, seconds, note)
        # Blocks and graphs, of whatever became of this kernel, are in the way of the next.
        paged = {}
        torch.cuda.empty_cache()


def _table_form(name: str, problem: Any) -> Any:
    """Return the kernel that is the same over a table of the rows, or ``None``."""
    from pyvattn.attention.registry import choose
    from pyvattn.errors import UnsupportedError

    if name not in _TABLE_FORMS:
        return None
    try:
        return choose(_TABLE_FORMS[name], problem)
    except UnsupportedError:  # the build was made without page tables
        return None


def _time(
    alternatives: dict[str, Callable[[], object]], options: Options
) -> tuple[dict[str, list[float]], str]:
    """Return seconds a call, and how the calls were made: all in CUDA graphs or none."""
    replays = in_graphs(alternatives)
    seconds = interleave_on_gpu(
        replays or alternatives, rounds=options.rounds, total_seconds=options.seconds
    )
    return seconds, f"all layers, {'in a CUDA graph' if replays else 'launched from Python'}"


def _over_layers(attend: Callable[[Any], Any], problems: list[Any]) -> Callable[[], None]:
    def call() -> None:
        for problem in problems:
            attend(problem)

    return call


def _report(
    kernel: str, shape: Shape, layout: str, seconds: dict[str, list[float]], note: str
) -> Iterator[Measure]:
    for name, values in seconds.items():
        title = f"{kernel}, {shape.name}: {name}"
        yield Measure.of(title, summarise(values), "ms", scale=1e3, note=note)
    for name, values in seconds.items():
        if name == _OURS:
            continue
        if name == _BY_TABLE:
            target = _AS_FAST_BY_TABLE if shape.queries == 1 else None
            yield Measure.of(
                f"{kernel}, {shape.name}: {_BY_TABLE} / {_OURS}",
                ratios(values, seconds[_OURS]),
                "times",
                at_most=target,
            )
            continue
        target = {_PLAIN: _AS_FAST[layout], _STRIDED: _AS_FAST_STRIDED}.get(name)
        if name == paged_name(BLOCK_TOKENS) and shape.queries > 1:
            target = 0.90
        yield Measure.of(
            f"{kernel}, {shape.name}: {_OURS} / {name}",
            ratios(seconds[_OURS], values),
            "times",
            at_most=target,
        )
