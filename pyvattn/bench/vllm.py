# SPDX-License-Identifier: Apache-2.0
"""``bench vllm``: vLLM with our worker, and stock vLLM, with the same requests by turns.

Both are alive at once, each in a process of its own. The first round warms up and is left out.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from statistics import fmean

from pyvattn.arguments import Settings, check_type
from pyvattn.bench.report import Measure, Setup
from pyvattn.bench.vllm_engine import Engine, Served, shape_of
from pyvattn.bench.vllm_pair import Pair, Plan, compare, equal, swapped, waited
from pyvattn.bench.vllm_trace import trace_load
from pyvattn.errors import ConfigError
from pyvattn.gpu_timing import require_gpu
from pyvattn.text import shown
from pyvattn.traces import Trace, read_trace, synthetic_trace

WORKLOADS = ("short", "prefill", "decode", "trace")
_SHORT_TOKENS = 3072
_MASK_KERNEL = "pyvattn.bench.vllm_mask:KERNEL"
_SHARED_TOKENS = 1024
# New tokens of requests whose prompts are in the prefix cache.
_FOLLOWING = 64
_GIB = 1 << 30
# Beside weights and KV: activations of a chunk, CUDA graphs, and what CUDA itself takes.
_ROOM = 7 * _GIB


@dataclass(frozen=True)
class Options(Settings, least={"new_tokens": 2, "trace_requests": 2, "tensor_parallel": 1}):
    """``workload``: some of WORKLOADS, all where none is named.

    ``short``: ``requests`` prompts of 16 to 3,072 tokens, every fourth with the same first
    1,024, ``new_tokens`` each, 128 at a time. ``prefill``: ``long_requests`` prompts of
    ``long_tokens``, one new token each, then the same again, found in the prefix cache, with
    64 new ones. ``decode``: ``decode_requests`` prompts of ``decode_tokens``, then 64 new
    tokens each. Fewer long requests are made where KV memory holds no more. ``trace``: the first
    ``trace_requests`` of a CSV file, or of a synthetic trace, all at once, or ``rate`` a second.

    ``kv_gib`` of each engine, 0: what fits twice. ``backend`` is vLLM's of both on a GPU,
    ``ours_backend`` of ours alone. ``block_size`` 0: vLLM's default for stock, and as many
    tokens as fill a page of 2 MiB for ours, 16 on one GPU. With ``ours_backend`` ours has our
    scheduler too; ``late_binding`` and ``ours_kernel`` are the plug-in's options. ``flex_mask``:
    both attend by FlexAttention with a mask that no paged kernel has, stock by vLLM's own backend
    for it and ours over rows; neither compiles the model or uses CUDA graphs. ``tensor_parallel``
    GPUs share the heads of each engine's model; ``kv_gib`` is then of each GPU. ``swap_gib`` of
    host memory, if any, take what ours preempts, and neither has a prefix cache: give less
    ``kv_gib`` than the requests need.
    """

    model: str = "llama-3-8b"
    layers: int = 0
    workload: Sequence[str] = ()
    requests: int = 256
    new_tokens: int = 128
    long_requests: int = 4
    long_tokens: int = 60000
    decode_requests: int = 32
    decode_tokens: int = 32768
    trace: str | None = None
    trace_requests: int = 200
    rate: float = 0.0
    rounds: int = 2
    seconds: float = 0.0
    kv_gib: float = 0.0
    kv_dtype: str = "auto"
    quantization: str = ""
    backend: str = "FLASH_ATTN"
    ours_backend: str = ""
    ours_kernel: str = "auto"
    late_binding: bool = False
    flex_mask: bool = False
    block_size: int = 0
    stock_block_size: int = 0
    tensor_parallel: int = 1
    swap_gib: float = 0.0
    driver: str = "auto"
    eager: bool = False
    device: str = "cuda"


def measure(options: Options) -> Iterator[Measure | Setup]:
    """Yield the setup and every measure. Raises DriverUnavailable without a GPU."""
    check_type("options", options, Options)
    began = time.perf_counter()
    workloads = options.workload or WORKLOADS
    if unknown := set(workloads) - set(WORKLOADS):
        raise ConfigError(f"workload {', '.join(unknown)}: use {', '.join(WORKLOADS)}")
    options = _sized(_masked(options) if options.flex_mask else options)
    with ExitStack() as engines:
        stock, ours = (engines.enter_context(closing(engine)) for engine in _start(options))
        versions = {engine.name: engine.wait() for engine in (stock, ours)}
        yield Setup("vllm", {**versions, "kv_gib": options.kv_gib, "workloads": list(workloads)})
        yield Measure("both engines are ready", time.perf_counter() - began, "s")
        vocabulary = shape_of(options.model).vocabulary
        # What vLLM compiles chooses kernels by their time, in each engine anew.
        exact = not options.ours_backend and (options.eager or options.device == "cpu")
        plan = Plan(options.rounds, options.seconds, began, vocabulary, exact)
        pair = Pair(stock, ours, plan)
        for name in workloads:
            yield from _MEASURES[name](options, pair)


def _masked(options: Options) -> Options:
    """Return the options with what each engine needs to attend by FlexAttention."""
    if options.device == "cpu":
        raise ConfigError("flex_mask needs --device cuda: on a CPU vLLM has one backend of its own")
    for name in ("backend", "ours_backend", "ours_kernel", "kv_dtype"):
        given = getattr(options, name)
        if given != getattr(Options, name):
            raise ConfigError(f"{name}={shown(given)} with flex_mask: leave one of them out")
    # vLLM's backend knows a mask that its layers are given later where nothing was captured.
    return replace(
        options,
        backend="FLEX_ATTENTION",
        ours_backend="CUSTOM",
        ours_kernel=_MASK_KERNEL,
        eager=True,
    )


def _start(options: Options) -> tuple[Engine, Engine]:
    cuda = options.device != "cpu"
    common: dict[str, object] = {
        "max_model_len": _longest(options),
        "max_num_seqs": 128,
        "max_num_batched_tokens": 8192,
        "kv_cache_memory_bytes": int(options.kv_gib * _GIB),
        "kv_cache_dtype": options.kv_dtype,
        "enforce_eager": options.eager or not cuda,
        "enable_prefix_caching": not options.swap_gib,
    }
    if options.tensor_parallel > 1:
        common["tensor_parallel_size"] = options.tensor_parallel
    if options.quantization:
        common["quantization"] = options.quantization
    if cuda:
        common["attention_backend"] = options.backend
        common["gpu_memory_utilization"] = 0.45
    stock, ours = dict(common), dict(common)
    if options.stock_block_size:
        stock["block_size"] = options.stock_block_size
    ours["block_size"] = options.block_size or 16 * options.tensor_parallel
    ours["worker_cls"] = "pyvattn.vllm.Worker"
    plug_in: dict[str, object] = {
        "driver": options.driver,
        "late_binding": options.late_binding,
        "kernel": options.ours_kernel,
    }
    if options.swap_gib:
        plug_in["swap_memory"] = int(options.swap_gib * _GIB)
        ours["kv_transfer_config"] = {
            "kv_connector": "PyvattnSwapConnector",
            "kv_role": "kv_both",
        }
    ours["additional_config"] = {"pyvattn": plug_in}
    if options.ours_backend:
        ours["attention_backend"] = options.ours_backend
        ours["scheduler_cls"] = "pyvattn.vllm.Scheduler"
    return (
        Engine("stock", options.model, options.layers, stock, masked=options.flex_mask),
        Engine("ours", options.model, options.layers, ours),
    )


def _longest(options: Options) -> int:
    workloads = options.workload or WORKLOADS
    longest = _SHARED_TOKENS + _SHORT_TOKENS + options.new_tokens
    if "prefill" in workloads:
        longest = max(longest, options.long_tokens + _FOLLOWING)
    if "decode" in workloads:
        longest = max(longest, options.decode_tokens + _FOLLOWING)
    if "trace" in workloads:
        longest = max(longest, _trace(options).longest + 1)
    return longest


def _sized(options: Options) -> Options:
    """Return the options with KV memory, and no more long requests than it holds."""
    shape, ranks = shape_of(options.model), options.tensor_parallel
    if shape.kv_heads % ranks:
        raise ConfigError(
            f"tensor_parallel={ranks} does not divide the {shape.kv_heads} KV heads of "
            f"{options.model}: use a divisor"
        )
    layers = options.layers or shape.layers
    itemsize = 1 if options.kv_dtype.startswith("fp8") else 2
    token = 2 * shape.kv_heads // ranks * (shape.hidden // shape.heads) * layers * itemsize
    kv = int(options.kv_gib * _GIB)
    if not kv and options.device == "cpu":
        kv = _GIB
    if not kv:
        last = ranks - 1
        free, _ = require_gpu(last).cuda.mem_get_info(last)
        weights = _weights(options.model, layers) // ranks
        weight_bytes = 1 if options.quantization.startswith("fp8") else 2
        kv = int(free) // 2 - weights * weight_bytes - _ROOM
    if kv < 4096 * token:
        raise ConfigError(
            f"kv_gib={kv / _GIB:.1f} holds fewer than 4096 tokens: use a machine with more memory, "
            "or fewer --layers"
        )
    tokens = kv // token
    return replace(
        options,
        kv_gib=kv / _GIB,
        long_requests=max(1, min(options.long_requests, tokens // (options.long_tokens + 512))),
        decode_requests=max(
            1, min(options.decode_requests, tokens // (options.decode_tokens + 512))
        ),
    )


def _weights(model: str, layers: int) -> int:
    shape = shape_of(model)
    heads = shape.heads + shape.kv_heads
    head = shape.hidden // shape.heads
    layer = 2 * shape.hidden * heads * head + 3 * shape.hidden * shape.feed
    return layers * layer + 2 * shape.vocabulary * shape.hidden


def _short(options: Options, pair: Pair) -> Iterator[Measure]:
    draw = random.Random(0)
    counts = [draw.randrange(16, _SHORT_TOKENS + 1) for _ in range(options.requests)]

    def serve(engine: Engine, turn: int) -> list[Served]:
        (prefix,) = pair.prompts([_SHARED_TOKENS], turn)
        prompts = pair.prompts(counts, turn)
        prompts = [prefix + ids if i % 4 == 0 else ids for i, ids in enumerate(prompts)]
        return [engine.serve(prompts, options.new_tokens, forget=True)]

    title = f"{options.requests} x (16 to {_SHORT_TOKENS} + {options.new_tokens}) tokens"
    rounds = list(pair.rounds(serve))
    output = options.requests * options.new_tokens
    yield from equal(pair, title, rounds)
    yield from compare(title, rounds, 0, "output", "tokens/s", lambda s: output / s.seconds, 1.0)
    yield from waited(title, rounds, 0)
    if options.swap_gib:
        yield from swapped(title, rounds, 0)


def _prefill(options: Options, pair: Pair) -> Iterator[Measure]:
    counts = [options.long_tokens] * options.long_requests

    def serve(engine: Engine, turn: int) -> list[Served]:
        prompts = pair.prompts(counts, turn)
        return [engine.serve(prompts, 1, forget=True), engine.serve(prompts, _FOLLOWING)]

    fp8 = options.kv_dtype.startswith("fp8")
    title = f"{options.long_requests} x {options.long_tokens} tokens"
    rounds = list(pair.rounds(serve))
    yield from equal(pair, title, rounds)
    prompts = sum(counts)
    target = 1.22 if options.flex_mask else 1.15 if fp8 else 1.1
    yield from compare(
        title, rounds, 0, "prompt", "tokens/s", lambda s: prompts / s.seconds, target
    )
    yield from waited(title, rounds, 0)
    title += f" in the prefix cache, + {_FOLLOWING}"
    yield from compare(title, rounds, 1, "whole run", "s", lambda s: s.seconds, at_most=1.03)
    yield from compare(title, rounds, 1, "first token", "s", lambda s: fmean(s.first), at_most=1.05)
    yield from waited(title, rounds, 1)


def _decode(options: Options, pair: Pair) -> Iterator[Measure]:
    counts = [options.decode_tokens] * options.decode_requests

    def serve(engine: Engine, turn: int) -> list[Served]:
        prompts = pair.prompts(counts, turn)
        return [engine.serve(prompts, 1, forget=True), engine.serve(prompts, _FOLLOWING)]

    fp8 = options.kv_dtype.startswith("fp8")
    title = f"{options.decode_requests} x {options.decode_tokens} tokens, then {_FOLLOWING} each"
    rounds = list(pair.rounds(serve))
    yield from equal(pair, title, rounds)
    target = 1.08 if fp8 else 1.03
    yield from compare(
        title, rounds, 1, "a request", "tokens/s", lambda s: 1 / fmean(s.per_token), target
    )


def _of_trace(options: Options, pair: Pair) -> Iterator[Measure]:
    return trace_load(pair, _trace(options), options.rate)


def _trace(options: Options) -> Trace:
    if options.trace is None:
        return synthetic_trace(options.trace_requests)
    return read_trace(options.trace, limit=options.trace_requests)


_MEASURES = {"short": _short, "prefill": _prefill, "decode": _decode, "trace": _of_trace}
