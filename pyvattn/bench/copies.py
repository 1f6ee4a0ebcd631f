# SPDX-License-Identifier: Apache-2.0
"""What benches share that copy a request: the request, and how many copies torch makes."""

from __future__ import annotations

from typing import Any

from pyvattn import _native
from pyvattn._native import Slot
from pyvattn.cache import KVCache
from pyvattn.errors import ConfigError
from pyvattn.samples import BLOCK_TOKENS
from pyvattn.spec import CacheSpec


def request_spec(tokens: int, layers: int) -> CacheSpec:
    """Return the spec of one request of ``tokens`` tokens of Llama-3-8B's shape.

    Raises :class:`~pyvattn.errors.ConfigError` where blocks do not fill it.
    """
    if tokens % BLOCK_TOKENS:
        raise ConfigError(f"tokens={tokens}: use a multiple of {BLOCK_TOKENS}")
    return CacheSpec(layers, 8, 128, dtype="bfloat16", max_slots=1, max_tokens=tokens)


def is_on_host(driver: str) -> bool:
    """Whether a driver needs no GPU."""
    return driver == "host" or _native.emulates(driver) is not None


def filled_slot(cache: KVCache) -> Slot:
    """Return a slot with as many tokens as fit, of ones."""
    slot = cache.admit(cache.spec.max_tokens)
    for layer in range(cache.spec.layers):
        for tensor in cache.layer(layer):
            tensor[slot.index, : cache.spec.max_tokens] = 1
    return slot


def counting(torch: Any) -> Any:
    """Return a context whose ``copies`` are the copies of torch inside it."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counting(TorchDispatchMode):
        copies = 0

        def __torch_dispatch__(
            self, function: Any, types: Any, arguments: Any = (), named: Any = None
        ) -> Any:
            self.copies += function is torch.ops.aten.copy_.default
            return function(*arguments, **(named or {}))

    mode: Any = Counting  # whose __init__ has no types
    return mode()
