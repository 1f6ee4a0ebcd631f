# SPDX-License-Identifier: Apache-2.0
"""``bench sharing`` on a device: the time of a fork, and of prompts that begin alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pyvattn.bench.random_model import make_model, make_prompts
from pyvattn.bench.report import Measure
from pyvattn.bench.timing import ratios, summarise
from pyvattn.cache import KVCache
from pyvattn.gpu_timing import require_gpu, require_torch
from pyvattn.prefix import PrefixStats
from pyvattn.resolve import check_device
from pyvattn.spec import CacheSpec

if TYPE_CHECKING:
    from pyvattn.bench.sharing import Options

_FORKED = 32_000
_OWN = 200
_TURNS = 3
_MOST_MILLISECONDS = 1.0
_MOST_OF_UNSHARED = 0.15


def measure_served(options: Options) -> Iterator[Measure]:
    """Yield every measure. Raises DriverUnavailable where the device is a GPU that is not there."""
    device = check_device(options.device)
    torch, wait = require_torch(), _nothing
    if device != "cpu":
        torch = require_gpu(int(device.partition(":")[2] or 0))
        wait = torch.cuda.synchronize
    yield from _forks(options, wait)
    model = make_model(options.model, device, layers=options.layers or None)
    yield from _prompts(options, model, wait)


def _nothing() -> None:
    """Wait for a device that is never behind."""


def _forks(options: Options, wait: Callable[[], None]) -> Iterator[Measure]:
    from pyvattn.bench.sharing import timed_fork

    spec = CacheSpec(32, 8, 128, max_slots=2, max_tokens=_FORKED)
    memory = 2 * spec.max_slots * spec.row_bytes + (256 << 20)
    with _cache(spec, options, memory) as cache:
        slot = cache.admit(_FORKED)
        times = []
        for _ in range(options.rounds):
            cache.drain()
            wait()
            times.append(timed_fork(cache, slot))
        note = f"Llama-3-8B in bfloat16, {_memory_of(cache)}"
        cache.release(slot)
    name = "fork of 32,000 tokens, host time"
    most = _MOST_MILLISECONDS if options.device != "cpu" else None
    yield Measure.of(name, summarise(times), "ms", scale=1e3, at_most=most, note=note)


def _prompts(options: Options, model: Any, wait: Callable[[], None]) -> Iterator[Measure]:
    """Yield how long it takes until each request has a token, the beginning shared and not."""
    from pyvattn.integrations.transformers import Engine, spec_for

    longest = options.common_tokens + _OWN
    spec = spec_for(model, max_slots=2 * options.requests, max_tokens=longest + 1)
    memory = options.requests * spec.row_bytes * 5 // 4 + (1 << 30)
    size = f"{options.requests} requests that share {options.common_tokens:,} of {longest:,} tokens"
    seconds: dict[str, list[float]] = {"shared": [], "unshared": []}
    there = PrefixStats()
    with _cache(spec, options, memory) as cache:
        note = f"{options.model}, {model.config.num_hidden_layers} layers, {_memory_of(cache)}"
        for turn in range(1 + _TURNS):
            prompts = _alike(options, turn)
            for kind, values in seconds.items():
                with Engine(model, cache, prefix_reuse=kind == "shared", graphs=False) as engine:
                    wait()
                    began = time.perf_counter()
                    for prompt in prompts:
                        engine.submit(prompt, 1)
                    engine.run()
                    wait()
                    spent = time.perf_counter() - began
                    if engine.prefixes is not None:
                        there = engine.prefixes.stats()
                if turn:  # the first warms up
                    values.append(spent)
    share = 100 * there.hit_tokens / there.tokens
    yield Measure(f"{size}, tokens of prompts that were there", share, "%", note=note)
    for kind, values in seconds.items():
        yield Measure.of(f"{size}, prompts, {kind}", summarise(values), "s", note=note)
    ratio = ratios(seconds["shared"], seconds["unshared"])
    most = _MOST_OF_UNSHARED if options.device != "cpu" else None
    yield Measure.of(f"{size}, prompts, shared / unshared", ratio, "times", at_most=most, note=note)


def _alike(options: Options, turn: int) -> list[list[int]]:
    """Return prompts with one beginning, which no other turn has."""
    (common,) = make_prompts(options.model, 1, options.common_tokens, seed=2 * turn)
    own = make_prompts(options.model, options.requests, _OWN, seed=2 * turn + 1)
    return [common + each for each in own]


def _memory_of(cache: KVCache) -> str:
    return f"{cache.driver}, {cache.page_size >> 10}K pages"


@contextmanager
def _cache(spec: CacheSpec, options: Options, memory: int) -> Iterator[KVCache]:
    with KVCache(
        spec,
        device=options.device,
        driver=options.driver,
        page_size=options.page_size,
        layout="auto",
        memory=memory,
        read_ahead=0,
    ) as cache:
        yield cache
