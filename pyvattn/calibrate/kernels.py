"""What layouts and page-table entries cost attention on a GPU: the losses of the TLB rule.

A decode step over all layers of a Llama-3-8B-shaped cache, on each kind of memory in turn,
against tensors that torch allocated.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from pyvattn.bench.gpu import interleave_on_gpu, require_gpu
from pyvattn.cache import KVCache
from pyvattn.planner import Losses
from pyvattn.spec import CacheSpec

_ROWS, _CONTEXT, _LAYERS, _Q_HEADS = 32, 4096, 32, 32
# Fields of Losses, and the memory that shows each.
_CASES = {
    "layer_large": ("layer", "2M"),
    "layer_small": ("layer", "64K"),
    "token": ("token", "2M"),
}


def measure_losses(driver: str, device: int, rounds: int) -> Losses:
    """Return the share of decode time that each kind of memory of ``driver`` costs.

    Cases that the driver's pages do not have keep the built-in figure. Raises
    ``DriverUnavailable`` without a GPU and ``MissingDependency`` without torch.
    """
    from pyvattn import _native
    from pyvattn.units import parse_size

    torch = require_gpu(device)
    sizes = _native.driver_capabilities(driver, device).page_sizes
    found = {}
    for name, (layout, page_size) in _CASES.items():
        if parse_size(page_size) in sizes:
            found[name] = _loss(torch, driver, device, layout, page_size, rounds)
    return Losses(**found)


def _loss(torch: Any, driver: str, device: int, layout: str, page_size: str, rounds: int) -> float:
    spec = CacheSpec(_LAYERS, 8, 128, max_slots=_ROWS, max_tokens=_CONTEXT)
    with KVCache(
        spec,
        device=f"cuda:{device}",
        driver=driver,
        page_size=page_size,
        layout=layout,
        memory=2 * _ROWS * _CONTEXT * spec.token_bytes,
    ) as cache:
        cache.step(dict.fromkeys([cache.acquire(_CONTEXT) for _ in range(_ROWS)], _CONTEXT))
        ours = [cache.layer(layer) for layer in range(_LAYERS)]
        plain = [tuple(torch.zeros_like(one, memory_format=torch.contiguous_format) for one in kv)
                 for kv in ours]  # fmt: skip
        steps = {"ours": _step(torch, ours), "plain": _step(torch, plain)}
        seconds = interleave_on_gpu(steps, rounds=rounds)
    slower = [a / b for a, b in zip(seconds["ours"], seconds["plain"], strict=True)]
    return max(0.0, statistics.median(slower) - 1)


def _step(torch: Any, layers: list[Any]) -> Callable[[], None]:
    from pyvattn.attention.problem import Problem
    from pyvattn.attention.registry import choose

    k = layers[0][0]
    q = torch.randn(_ROWS, 1, _Q_HEADS, k.shape[-1], dtype=k.dtype, device=k.device)
    slots = torch.arange(_ROWS, dtype=torch.int32, device=k.device)
    lengths = torch.full_like(slots, _CONTEXT)
    problems = [Problem(q, k, v, slots, lengths, True, k.shape[-1] ** -0.5) for k, v in layers]
    kernel = choose("auto", problems[0])

    def step() -> None:
        for problem in problems:
            kernel.attend(problem)

    return step
