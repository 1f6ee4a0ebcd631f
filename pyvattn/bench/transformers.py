# SPDX-License-Identifier: Apache-2.0
"""``bench transformers``: continuous batching through our cache and through the library's own.

Both serve the same requests with the same model in one process, by turns: ours with the decode
step in a CUDA graph where the device has them, the library's with what it chooses by itself on
this machine. vLLM can stand in for the library, in a process of its own. The first round warms
both up, and has rows of its own.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

from pyvattn.arguments import Settings, check_type
from pyvattn.bench.engines import Library, Ours, versions
from pyvattn.bench.random_model import SHAPES, make_model, make_prompts
from pyvattn.bench.report import Measure, Setup
from pyvattn.bench.serving import Load, Run, percentile, poisson
from pyvattn.bench.step_profile import profile
from pyvattn.bench.stock_vllm import StockVllm
from pyvattn.bench.timing import ratios, summarise
from pyvattn.bench.worst_steps import worst_steps
from pyvattn.cache import KVCache
from pyvattn.errors import ConfigError
from pyvattn.gpu_timing import require_gpu, require_torch

BASELINES = ("library", "sdpa", "vllm")
Baseline = Library | StockVllm


@dataclass(frozen=True)
class Options(Settings, least={"new_tokens": 2, "seed": 0}):
    """``requests`` prompts of ``prompt_tokens``, each to get ``new_tokens``.

    They arrive all at once, or ``rate`` a second on average, at the times of a Poisson process
    with the seed ``seed``. ``against`` is ``"library"`` for what the library chooses by itself or
    ``"sdpa"``, ``compile_level`` its ``default_compile_level``; ``"vllm"`` is vLLM as it comes.
    After a first round there are ``rounds`` more, but none that would end more than ``seconds``
    after the start (0: no limit).
    ``layers`` 0 are as many as the model has. ``device`` "cpu" works with small models.

    ``kv_dtype`` is that of our cache alone, "" for the model's: "float8_e4m3fn" quantises. Its tail
    guard is what every kernel of this machine needs, or that of the kernel ``guard_for``: without
    one, FlashAttention-3 reads by a table. ``ours_compile`` is our engine's ``compile``,
    ``ours_fuse`` its ``fuse_projections``.
    With ``profile`` nothing is compared: our steps are taken apart, see
    :mod:`pyvattn.bench.step_profile`. Nor with ``steps``: so many run, with requests that join and
    leave, see :mod:`pyvattn.bench.worst_steps`; none begins past ``seconds``.
    """

    model: str = "llama-3-8b"
    layers: int = 0
    requests: int = 32
    prompt_tokens: int = 4096
    new_tokens: int = 128
    rate: float = 0.0
    seed: int = 1
    against: str = "library"
    compile_level: int = 0
    rounds: int = 3
    seconds: float = 0.0
    device: str = "cuda:0"
    driver: str = "auto"
    page_size: str = "auto"
    layout: str = "auto"
    kv_dtype: str = ""
    guard_for: str = ""
    ours_compile: bool = False
    ours_fuse: bool = False
    profile: bool = False
    steps: int = 0

    @property
    def size(self) -> str:
        """The requests in words."""
        each = f"{self.requests} x ({self.prompt_tokens} + {self.new_tokens}) tokens"
        if not self.rate:
            return each
        return f"{each}, {self.rate:g} a second (Poisson, seed {self.seed})"


def measure(options: Options) -> Iterator[Measure | Setup]:
    """Yield the setup and every measure. Raises DriverUnavailable without the GPU asked for."""
    check_type("options", options, Options)
    began = time.perf_counter()
    _require(options)
    load = _load(options, 0)
    with ExitStack() as opened:
        baseline: Baseline | None = None
        if options.against == "vllm":
            baseline = opened.enter_context(closing(_vllm(options, load)))
        model = make_model(options.model, options.device, layers=options.layers or None)
        ours = opened.enter_context(closing(_ours(options, model, load)))
        if options.profile:
            yield from profile(ours, (load, _load(options, 1)), options.device)
        elif options.steps:
            yield from _many_steps(options, ours, load, began)
        else:
            if baseline is None:
                level = options.compile_level
                library = Library(model, load, against=options.against, compile_level=level)
                baseline = opened.enter_context(closing(library))
            pairs = list(_serve(options, ours, baseline, began))
            yield _setup(ours, baseline)
            if ours.captured is not None:
                yield Measure("ours: capturing the decode step", ours.captured, "s", note=ours.note)
            yield from _report(model, options, pairs, ours, baseline)


def _vllm(options: Options, load: Load) -> StockVllm:
    return StockVllm(load, model=options.model, layers=options.layers, device=options.device)


def _ours(options: Options, model: Any, load: Load) -> Ours:
    return Ours(
        model,
        load,
        device=options.device,
        driver=options.driver,
        page_size=options.page_size,
        layout=options.layout,
        kv_dtype=options.kv_dtype or None,
        guard_for=options.guard_for or None,
        compile=options.ours_compile,
        fuse_projections=options.ours_fuse,
    )


def _many_steps(
    options: Options, ours: Ours, load: Load, began: float
) -> Iterator[Measure | Setup]:
    ours.run(load)
    prompts = _prompts_without_end(options)
    counts = options.requests, options.new_tokens, options.steps
    until = began + options.seconds if options.seconds else math.inf
    yield from worst_steps(ours, prompts, *counts, gpu=options.device != "cpu", until=until)


def _load(options: Options, turn: int) -> Load:
    """Return the requests of a round: new prompts, so that no prefix cache knows them."""
    seed = options.seed + turn
    prompts = make_prompts(options.model, options.requests, options.prompt_tokens, seed)
    arrivals = poisson(options.requests, options.rate, options.seed)
    return Load(prompts, arrivals, options.new_tokens)


def _prompts_without_end(options: Options) -> Iterator[list[int]]:
    """Yield prompts that the first round does not have."""
    for turn in itertools.count(1):
        yield from _load(options, turn).prompts


def _serve(
    options: Options, ours: Ours, library: Baseline, began: float
) -> Iterator[tuple[Run, Run]]:
    """Yield a pair of runs for each round, ours first in one and the library first in the next."""
    longest = 0.0
    for turn in range(1 + options.rounds):
        start = time.perf_counter()
        if turn > 1 and options.seconds and start - began + longest > options.seconds:
            break
        load = _load(options, turn)
        if turn % 2:
            theirs, mine = library.run(load), ours.run(load)
        else:
            mine, theirs = ours.run(load), library.run(load)
        yield mine, theirs
        if turn:
            longest = max(longest, time.perf_counter() - start)


def _require(options: Options) -> None:
    """Raise for options out of range and for a device that is not there."""
    if options.requests < 1 or options.prompt_tokens < 1 or options.new_tokens < 2:
        raise ConfigError(
            f"requests={options.requests}, prompt_tokens={options.prompt_tokens}, new_tokens="
            f"{options.new_tokens}: use at least 1, 1 and 2"
        )
    if options.rate < 0 or options.rounds < 1:
        raise ConfigError(f"rate={options.rate:g}, rounds={options.rounds}: use at least 0 and 1")
    if options.profile and options.steps:
        raise ConfigError(f"profile and steps={options.steps}: ask for one of them")
    if options.against == "vllm" and (options.profile or options.steps or options.compile_level):
        raise ConfigError(
            "against='vllm' with profile, steps or compile_level: vLLM is compared as it comes, "
            "leave them out"
        )
    if options.rate and options.requests < 2:
        raise ConfigError("requests=1 at a rate: use at least 2, percentiles need them")
    if options.against not in BASELINES:
        raise ConfigError(f"against={options.against!r}: use one of {', '.join(BASELINES)}")
    require_torch()
    if options.device == "cpu":
        return
    kind, _, ordinal = options.device.partition(":")
    if kind != "cuda" or not (ordinal or "0").isdigit():
        raise ConfigError(f"device={options.device!r}: use 'cuda:0' or another ordinal, or 'cpu'")
    require_gpu(int(ordinal or 0))


def _setup(ours: Ours, library: Baseline) -> Setup:
    """Return what was compared, in the words of those who set it."""
    return Setup(
        "baseline",
        {
            "name": library.name,
            "attention": library.attention,
            "settings": library.settings,
            "ours": ours.note,
            "versions": versions(),
        },
    )


# What is reported of each engine: title, then unit, factor, and the figure of a run.
_Figures = dict[str, tuple[str, float, Callable[[Run], float]]]
_AT_ONCE: _Figures = {
    "output, while all decode": ("tokens/s", 1, lambda run: run.decode),
    "output, whole run": ("tokens/s", 1, lambda run: run.whole),
    "all prompts": ("s", 1, lambda run: run.first),
}
# Against vLLM: at least so much of its rates, at most so much of its time.
_OF_VLLM = {"output, while all decode": (0.95, None), "all prompts": (None, 1 / 0.95)}
_NO_TARGET = (None, None)
_LIVE: _Figures = {
    "output, whole run": ("tokens/s", 1, lambda run: run.whole),
    "time to the first token, p50": ("ms", 1e3, lambda run: percentile(run.to_first, 50)),
    "time to the first token, p99": ("ms", 1e3, lambda run: percentile(run.to_first, 99)),
    "time per output token, p50": ("ms", 1e3, lambda run: percentile(run.per_token, 50)),
    "time per output token, p99": ("ms", 1e3, lambda run: percentile(run.per_token, 99)),
    "time between two tokens, p99": ("ms", 1e3, lambda run: percentile(run.gaps, 99)),
}


def _report(
    model: Any, options: Options, pairs: list[tuple[Run, Run]], ours: Ours, library: Baseline
) -> Iterator[Measure]:
    (cold, cold_library), warm = pairs[0], pairs[1:]
    mine, theirs = [pair[0] for pair in warm], [pair[1] for pair in warm]
    names = "ours", library.name
    notes = ours.note, ""
    for title, (unit, scale, figure) in (_LIVE if options.rate else _AT_ONCE).items():
        values = [[figure(run) for run in runs] for runs in (mine, theirs)]
        for name, found, note in zip(names, values, notes, strict=True):
            yield _measure(f"{name}, {options.size}: {title}", found, unit, scale, note)
        target = _OF_VLLM.get(title, _NO_TARGET) if options.against == "vllm" else _NO_TARGET
        name = f"{' / '.join(names)}, {options.size}: {title}"
        yield _ratio(name, values[0], values[1], *target)
    first = f"{' / '.join(names)}, {options.size}: output, whole run, first round"
    yield Measure(first, cold.whole / cold_library.whole, "times")
    if not options.rate:
        yield from _of_the_device(model, options, mine, ours.cache)
    share = "ours: share of the run that waits for mapping"
    yield _measure(share, [run.waiting for run in mine], "%", 100)
    yield Measure(f"{share}, first round", cold.waiting * 100, "%")
    if options.against != "vllm":  # whose weights are others
        yield _same_tokens(options, cold, cold_library)


def _of_the_device(
    model: Any, options: Options, runs: list[Run], cache: KVCache
) -> Iterator[Measure]:
    """Yield what these rates ask of memory and of arithmetic: the device's limits bound them."""
    weights = [p for p in model.parameters() if p is not model.get_input_embeddings().weight]
    tokens = options.requests * (options.prompt_tokens + options.new_tokens / 2)
    read = sum(p.nbytes for p in weights) + tokens * cache.spec.token_bytes
    rates = [read * run.decode / options.requests / 1e9 for run in runs]
    yield _measure("ours: weights and KV read while all decode", rates, "GB/s")
    layers = sum(p.numel() for p in model.get_decoder().layers.parameters())
    config, length = model.config, options.prompt_tokens
    # A token meets half of its prompt on average: 2 products of 2 operations for each element.
    attention = 2 * length * config.num_attention_heads * cache.spec.head_dim * cache.spec.layers
    work = (2 * layers + attention) * length * options.requests
    rates = [work / run.first / 1e12 for run in runs]
    yield _measure("ours: arithmetic until every prompt is done", rates, "TFLOP/s")


def _same_tokens(options: Options, one: Run, other: Run) -> Measure:
    same = sum(a == b for a, b in zip(one.tokens, other.tokens, strict=True))
    exact = SHAPES[options.model].dtype == "float32" and not options.kv_dtype
    return Measure(
        "requests with the same tokens from both, first round",
        same,
        f"of {options.requests}",
        at_least=options.requests if exact else None,
        note="" if exact else "random weights: the last bit of a kernel decides",
    )


def _measure(
    name: str, values: Sequence[float], unit: str, scale: float = 1, note: str = ""
) -> Measure:
    if len(values) == 1:
        return Measure(name, values[0] * scale, unit, note=note)
    return Measure.of(name, summarise(values), unit, scale=scale, note=note)


def _ratio(
    name: str,
    over: Sequence[float],
    under: Sequence[float],
    at_least: float | None = None,
    at_most: float | None = None,
) -> Measure:
    if len(over) == 1:
        value = over[0] / under[0]
        return Measure(name, value, "times", at_least=at_least, at_most=at_most)
    found = ratios(over, under)
    return Measure.of(name, found, "times", at_least=at_least, at_most=at_most)
