"""``bench transformers``: continuous batching through our cache and through the library's own.

Both serve the same requests with the same model in one process: ours with the decode step
in a CUDA graph where the device has them, the library's ``generate_batch`` as it comes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from pyvattn.bench.gpu import require_gpu, require_torch
from pyvattn.bench.random_model import SHAPES, make_model, make_prompts
from pyvattn.bench.report import Measure
from pyvattn.bench.timing import ratios, summarise
from pyvattn.cache import KVCache
from pyvattn.errors import ConfigError, UnsupportedError

_TARGET = 20


@dataclass(frozen=True)
class Options:
    """``requests`` prompts of ``prompt_tokens``, each to get ``new_tokens``.

    ``against`` is the attention of the library's paged cache, ``layers`` 0 as many as the
    model has. ``device`` "cpu" works with small models.
    """

    model: str = "llama-3-8b"
    layers: int = 0
    requests: int = 32
    prompt_tokens: int = 4096
    new_tokens: int = 128
    against: str = "sdpa"
    rounds: int = 1
    device: str = "cuda:0"
    driver: str = "auto"
    page_size: str = "auto"
    layout: str = "auto"


@dataclass(frozen=True)
class Run:
    """The tokens of every request, when each was known to the host, and when it all began."""

    tokens: list[list[int]]
    times: list[list[float]]
    began: float

    @property
    def first(self) -> float:
        """Seconds until every request had its first token."""
        return max(times[0] for times in self.times) - self.began

    @property
    def whole(self) -> float:
        """Output tokens a second over the whole run, prompts included."""
        ended = max(times[-1] for times in self.times)
        return sum(map(len, self.tokens)) / (ended - self.began)

    @property
    def decode(self) -> float:
        """Output tokens a second while every request decodes and no prompt runs."""
        begin = max(times[0] for times in self.times)
        end = min(times[-1] for times in self.times)
        within = sum(begin < at <= end for times in self.times for at in times)
        if not within:
            raise ConfigError(
                "there was no moment at which all requests decoded: raise --new-tokens, or lower "
                "--requests or --prompt-tokens"
            )
        return within / (end - begin)


def measure(options: Options) -> Iterator[Measure]:
    """Yield every measure. Raises DriverUnavailable without the GPU that is asked for."""
    _require(options)
    model = make_model(options.model, options.device, layers=options.layers or None)
    prompts = make_prompts(options.model, options.requests, options.prompt_tokens)
    theirs = f"transformers, paged|{options.against}"
    runs: dict[str, list[Run]] = {"ours": [], theirs: []}
    with closing(Ours(options, model)) as ours:
        if ours.captured is not None:
            yield Measure("ours: capturing the decode step", ours.captured, "s", note=ours.note)
        for _ in range(options.rounds):
            runs["ours"].append(ours.run(prompts))
            runs[theirs].append(run_library(model, options, prompts))
        yield from _report(model, options, runs, ours)


class Ours:
    """The engine over a cache that holds every request, kept from round to round."""

    def __init__(self, options: Options, model: Any) -> None:
        from pyvattn.integrations.transformers import Engine, spec_for
        from pyvattn.integrations.transformers.graphs import decode_kernel

        self._new_tokens = options.new_tokens
        longest = options.prompt_tokens + options.new_tokens
        spec = spec_for(model, max_slots=options.requests + 1, max_tokens=longest)
        needed = (longest + spec.guard_tokens) * spec.max_slots * spec.token_bytes
        self.cache = KVCache(
            spec,
            device=options.device,
            driver=options.driver,
            page_size=options.page_size,
            layout=options.layout,
            memory=2 * needed + (64 << 20),
        )
        self._requests: list[Any] = []
        self._times: list[list[float]] = []
        try:
            self._engine = Engine(model, self.cache, on_step=self._note)
            self.captured = self._capture(options.requests)
        except BaseException:
            self.cache.close()
            raise
        graph = "decode in a CUDA graph" if self._engine.graphs else "no CUDA graph"
        self.note = f"{self.cache.driver}, {decode_kernel(model, self.cache).name}, {graph}"

    def _capture(self, rows: int) -> float | None:
        """Capture every batch size to ``rows``; returns the seconds, or None without graphs."""
        if not self._engine.graphs:
            return None
        began = time.perf_counter()
        self._engine.capture(rows)
        return time.perf_counter() - began

    def run(self, prompts: list[list[int]]) -> Run:
        """Serve ``prompts``."""
        from pyvattn.integrations.transformers import ATTENTION

        self._engine.model.set_attn_implementation(ATTENTION)
        self._times = [[] for _ in prompts]
        began = time.perf_counter()
        self._requests = [self._engine.submit(prompt, self._new_tokens) for prompt in prompts]
        self._engine.run()
        return Run([request.output for request in self._requests], self._times, began)

    def close(self) -> None:
        """Close the engine and its cache."""
        self._engine.close()
        self.cache.close()

    def _note(self, engine: Any) -> None:
        now = time.perf_counter()
        for request, times in zip(self._requests, self._times, strict=True):
            times += [now] * (len(request.output) - len(times))


def run_library(model: Any, options: Options, prompts: list[list[int]]) -> Run:
    """Serve ``prompts`` through the library's paged cache, with its own settings.

    It sizes the cache by the memory that is free. Of the host's it would take nearly all, so
    there it gets what the requests need.
    """
    from transformers import ContinuousBatchingConfig, GenerationConfig

    model.set_attn_implementation(f"paged|{options.against}")
    # No token ends a request: each gets as many as ours.
    config = GenerationConfig(
        max_new_tokens=options.new_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0
    )
    settings = ContinuousBatchingConfig()
    if options.device == "cpu":
        tokens = options.prompt_tokens + options.new_tokens
        settings.num_blocks = (tokens // settings.block_size + 2) * options.requests
        settings.max_batch_tokens = max(256, tokens)
    found = model.generate_batch(
        prompts,
        generation_config=config,
        continuous_batching_config=settings,
        record_timestamps=True,
    )
    outputs = list(found.values())
    failed = [output.error for output in outputs if output.error is not None]
    if failed or len(outputs) < len(prompts):
        raise UnsupportedError(
            f"transformers' generate_batch finished {len(outputs) - len(failed)} of {len(prompts)} "
            f"requests ({failed[0] if failed else 'its log says why'}): lower --requests or "
            "--prompt-tokens, or choose another attention with --against"
        )
    return Run(
        [output.generated_tokens for output in outputs],
        [output.timestamps for output in outputs],
        min(output.created_time for output in outputs),
    )


def _require(options: Options) -> None:
    """Raise where the options make no sense or the device is not there."""
    if options.requests < 1 or options.prompt_tokens < 1 or options.new_tokens < 2:
        raise ConfigError(
            f"requests={options.requests}, prompt_tokens={options.prompt_tokens}, new_tokens="
            f"{options.new_tokens}: use at least 1, 1 and 2"
        )
    require_torch()
    if options.device == "cpu":
        return
    kind, _, ordinal = options.device.partition(":")
    if kind != "cuda" or not (ordinal or "0").isdigit():
        raise ConfigError(f"device={options.device!r}: use 'cuda:0' or another ordinal, or 'cpu'")
    require_gpu(int(ordinal or 0))


def _report(
    model: Any, options: Options, runs: dict[str, list[Run]], ours: Ours
) -> Iterator[Measure]:
    size = f"{options.requests} x ({options.prompt_tokens} + {options.new_tokens}) tokens"
    decode = {name: [run.decode for run in each] for name, each in runs.items()}
    whole = {name: [run.whole for run in each] for name, each in runs.items()}
    official = options == Options(rounds=options.rounds, device=options.device)
    for title, rates in (("while all decode", decode), ("whole run", whole)):
        for name, values in rates.items():
            note = ours.note if name == "ours" else ""
            yield _measure(f"{name}, {size}: output, {title}", values, "tokens/s", note)
        over, under = rates.values()
        name = " / ".join(rates)
        target = _TARGET if official else None
        yield _ratio(f"{name}, {size}: output, {title}", over, under, target)
    for name, each in runs.items():
        yield _measure(f"{name}, {size}: all prompts", [run.first for run in each], "s")
    yield from _of_the_device(model, options, runs["ours"], ours.cache)
    mapping = ours.cache.stats().map_seconds_blocking
    spent = sum(run.first + options.new_tokens / run.decode for run in runs["ours"])
    yield Measure("ours: share of the time that waits for mapping", mapping / spent * 100, "%")
    yield _same_tokens(options, runs)


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


def _same_tokens(options: Options, runs: dict[str, list[Run]]) -> Measure:
    one, other = (each[0].tokens for each in runs.values())
    same = sum(a == b for a, b in zip(one, other, strict=True))
    exact = SHAPES[options.model].dtype == "float32"
    return Measure(
        "requests with the same tokens from both",
        same,
        f"of {options.requests}",
        at_least=options.requests if exact else None,
        note="" if exact else "random weights: in bfloat16 the last bit of a kernel decides",
    )


def _measure(name: str, values: list[float], unit: str, note: str = "") -> Measure:
    if len(values) == 1:
        return Measure(name, values[0], unit, note=note)
    return Measure.of(name, summarise(values), unit, note=note)


def _ratio(name: str, over: list[float], under: list[float], target: float | None) -> Measure:
    if len(over) == 1:
        return Measure(name, over[0] / under[0], "times", at_least=target)
    return Measure.of(name, ratios(over, under), "times", at_least=target)
