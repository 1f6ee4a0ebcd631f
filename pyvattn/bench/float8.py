# SPDX-License-Identifier: Apache-2.0
"""``bench float8``: FlashAttention-3 over K and V in float8, against bfloat16 and blocks.

All attend once to each of some layers, with the same values, in every round, as a CUDA graph. What
a step takes is that of :func:`pyvattn.attention.attend`, which quantises its queries; beside the
kernel's own paged form in float8 neither does, so that the ratio is that of the memory alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from pyvattn.arguments import Settings, check_type
from pyvattn.bench.attention import HEAD_DIM, KV_HEADS, Q_HEADS, Shape
from pyvattn.bench.paged import cut_into_blocks
from pyvattn.bench.report import Measure
from pyvattn.bench.timing import ratios, summarise
from pyvattn.cache import KVCache
from pyvattn.errors import DriverUnavailable
from pyvattn.gpu_timing import in_graphs, interleave_on_gpu, require_gpu
from pyvattn.samples import BLOCK_TOKENS
from pyvattn.spec import CacheSpec

_FLOAT8, _WIDE = "float8_e4m3fn", "bfloat16"
_OURS8, _OURS16 = "ours, float8", "ours, bfloat16"
_KERNEL8, _PAGED8 = "ours, float8, the kernel alone", f"paged, float8, {BLOCK_TOKENS} tokens"
# What float8 has to gain over bfloat16, and rows over blocks.
_TARGETS = {"decode": (1.5, 1.08), "prefill": (1.2, 1.28)}

SHAPES = (Shape("decode", 32, 32768, 1), Shape("prefill", 1, 60000, 60000))


@dataclass(frozen=True)
class Options(Settings, least={"layers": 1, "rounds": 3}):
    """``layers`` of Llama-3-8B's shape, each with its own K and V, three times over.

    Alternatives whose ``rounds`` would take longer than ``seconds`` get fewer, seven at least.
    """

    driver: str = "cumem"
    page_size: str = "auto"
    layout: str = "layer"
    device: int = 0
    layers: int = 4
    rounds: int = 31
    seconds: float = 20.0


def measure(options: Options) -> Iterator[Measure]:
    """Yield every measure.

    Raises :class:`~pyvattn.errors.DriverUnavailable` without a GPU or the memory, and
    :class:`~pyvattn.errors.UnsupportedError` without FlashAttention-3.
    """
    check_type("options", options, Options)
    torch = require_gpu(options.device)
    for shape in SHAPES:
        # A call of its own, which holds the tensors of this shape and no longer.
        yield from _measure_shape(torch, options, shape)


def _measure_shape(torch: Any, options: Options, shape: Shape) -> Iterator[Measure]:
    torch.cuda.empty_cache()
    _require_memory(torch, options, shape)
    with ExitStack() as stack:
        caches = {}
        for dtype in (_WIDE, _FLOAT8):
            cache = stack.enter_context(_open(options, shape, dtype))
            slots = [cache.acquire(shape.context) for _ in range(shape.rows)]
            for slot in slots:
                stack.callback(cache.release, slot)
            cache.step(dict.fromkeys(slots, shape.context))
            caches[dtype] = cache
        _fill(torch, caches[_WIDE], caches[_FLOAT8])
        calls = _calls(torch, options, shape, caches)
        replays = in_graphs(calls)
        seconds = interleave_on_gpu(
            replays or calls, rounds=options.rounds, total_seconds=options.seconds
        )
        note = f"all layers, {'in a CUDA graph' if replays else 'launched from Python'}"
        yield from report(shape, seconds, note)


def _spec(options: Options, shape: Shape, dtype: str) -> CacheSpec:
    from pyvattn.attention import guard_needed

    return CacheSpec(
        options.layers,
        KV_HEADS,
        HEAD_DIM,
        dtype=dtype,
        max_slots=shape.rows,
        max_tokens=shape.context,
        guard_tokens=guard_needed(dtype),
    )


def _require_memory(torch: Any, options: Options, shape: Shape) -> None:
    free, _ = torch.cuda.mem_get_info(options.device)
    # Those in blocks are as many as ours in float8; the rest is for what kernels write down.
    needed = shape.rows * sum(
        _spec(options, shape, dtype).row_bytes for dtype in (_WIDE, _FLOAT8, _FLOAT8)
    )
    if free < needed + needed // 8:
        raise DriverUnavailable(
            f"{free >> 30} GiB are free on cuda:{options.device}, and {shape.name} need about "
            f"{(needed + needed // 8) >> 30} GiB: use fewer --layers"
        )


def _open(options: Options, shape: Shape, dtype: str) -> KVCache:
    spec = _spec(options, shape, dtype)
    needed = shape.rows * spec.row_bytes
    return KVCache(
        spec,
        device=f"cuda:{options.device}",
        driver=options.driver,
        page_size=options.page_size,
        layout=options.layout,
        memory=needed + needed // 8 + (1 << 30),
    )


def _fill(torch: Any, wide: KVCache, small: KVCache) -> None:
    """Give both caches the same random tokens, row by row, and the second its scales."""
    from pyvattn.attention import KVScales, set_scales
    from pyvattn.attention.quantise import quantised

    scales = KVScales.to_calibrate(small)
    for layer in range(small.spec.layers):
        pairs = list(zip(wide.layer(layer), small.layer(layer), strict=True))
        for row in range(small.spec.max_slots):
            for whole, _ in pairs:
                whole[row, : small.spec.max_tokens].normal_()
            if row == 0:
                k, v = (whole[0, : small.spec.max_tokens] for whole, _ in pairs)
                scales.calibrate(layer, k, v, pairs[0][1].dtype)
            for (whole, few), scale in zip(pairs, scales.of(layer), strict=True):
                tokens_of_row = whole[row, : small.spec.max_tokens]
                few[row, : small.spec.max_tokens] = quantised(tokens_of_row, scale, few.dtype)
    set_scales(small, scales)


def _calls(
    torch: Any, options: Options, shape: Shape, caches: dict[str, KVCache]
) -> dict[str, Callable[[], None]]:
    from pyvattn.attention import attend, scales_of
    from pyvattn.attention.fused import queries_in_float8
    from pyvattn.attention.problem import Problem

    like = caches[_WIDE].layer(0)[0]
    slots = torch.arange(shape.rows, dtype=torch.int32, device=like.device)
    lengths = torch.full_like(slots, shape.context)
    heads = (shape.rows, shape.queries, Q_HEADS, HEAD_DIM)
    q = torch.randn(heads, dtype=like.dtype, device=like.device)
    small = caches[_FLOAT8]
    scales = scales_of(small)
    assert scales is not None
    rows = [small.layer(layer) for layer in range(options.layers)]
    first = Problem(q, *rows[0], slots, lengths, True, HEAD_DIM**-0.5, scales=scales.of(0))
    few, scale = queries_in_float8(first)
    by_layer = [scales.of(layer) for layer in range(options.layers)]
    descales = [
        {
            "q_descale": scale,
            "k_descale": each.k.expand(shape.rows, -1),
            "v_descale": each.v.expand(shape.rows, -1),
        }
        for each in by_layer
    ]
    table, blocks = _blocks(torch, rows, shape.context)

    def over(cache: KVCache) -> Callable[[], None]:
        def call() -> None:
            for layer in range(options.layers):
                attend(q, cache, layer, slots, lengths, kernel="flash-attn-3")

        return call

    def kernel_over(layers: Any, where: dict[str, Any]) -> Callable[[], None]:
        from flash_attn_interface import flash_attn_with_kvcache

        def call() -> None:
            for (k, v), scale in zip(layers, descales, strict=True):
                flash_attn_with_kvcache(
                    few,
                    k,
                    v,
                    cache_seqlens=lengths,
                    softmax_scale=HEAD_DIM**-0.5,
                    causal=True,
                    **scale,
                    **where,
                )

        return call

    return {
        _OURS16: over(caches[_WIDE]),
        _OURS8: over(small),
        _KERNEL8: kernel_over(rows, {"cache_batch_idx": slots}),
        _PAGED8: kernel_over(blocks, {"page_table": table}),
    }


def _blocks(torch: Any, rows: Any, context: int) -> tuple[Any, Any]:
    """Return the table and the blocks of float8 layers, by their bytes: torch pads no float8."""
    as_bytes = [tuple(each.view(torch.uint8) for each in pair) for pair in rows]
    table, blocks = cut_into_blocks(torch, as_bytes, context, BLOCK_TOKENS)
    dtype = rows[0][0].dtype
    return table, [tuple(each.view(dtype) for each in pair) for pair in blocks]


def report(shape: Shape, seconds: dict[str, list[float]], note: str) -> Iterator[Measure]:
    """Yield the times of one shape, and what float8 gains."""
    for name, values in seconds.items():
        yield Measure.of(f"{shape.name}: {name}", summarise(values), "ms", scale=1e3, note=note)
    pairs = (_OURS16, _OURS8), (_PAGED8, _KERNEL8)
    for (slower, faster), target in zip(pairs, _TARGETS[shape.kind], strict=True):
        yield Measure.of(
            f"{shape.name}: time of {slower} / {faster}",
            ratios(seconds[slower], seconds[faster]),
            "times",
            at_least=target,
        )
