# SPDX-License-Identifier: Apache-2.0
"""Serves the demo's prompts by continuous batching."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyvattn.demo.accounting import Meter
from pyvattn.demo.result import CacheFigures
from pyvattn.integrations.transformers import Engine, Request
from pyvattn.samples import Sample

if TYPE_CHECKING:
    from pyvattn.cache import KVCache
    from pyvattn.demo.model import Chat

Watcher = Callable[[Sequence[Request], Sample], None]


@dataclass(frozen=True)
class Served:
    """The finished requests in the order of their prompts, and what serving them took."""

    requests: list[Request]
    samples: list[Sample]
    seconds: float
    figures: CacheFigures


def serve(
    chat: Chat,
    cache: KVCache,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    watch: Watcher,
) -> Served:
    """Run each prompt to its end or its limit; ``watch`` sees all requests after every step."""
    started = time.perf_counter()
    meter = Meter(cache)

    def on_step(engine: Engine) -> None:
        meter.sample([request.cached for request in engine.running])

    engine = Engine(chat.model, cache, chat.stop_tokens, on_step)
    requests = [engine.submit(*each) for each in zip(prompts, limits, strict=True)]
    try:
        while engine.busy:
            engine.step()
            watch(requests, meter.samples[-1])
    finally:
        engine.close()
    seconds = time.perf_counter() - started
    return Served(requests, meter.samples, seconds, CacheFigures.of(cache))
