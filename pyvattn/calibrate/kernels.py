# SPDX-License-Identifier: Apache-2.0
"""What layouts and page-table entries cost attention on a GPU: the losses of the TLB rule.

A decode step over all layers of a Llama-3-8B-shaped cache, on each kind of memory in turn,
against tensors that torch allocated.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pyvattn import _native
from pyvattn.cache import KVCache
from pyvattn.errors import DriverUnavailable, PlanWarning
from pyvattn.gpu_timing import in_graphs, interleave_on_gpu, require_gpu
from pyvattn.planner import Losses
from pyvattn.spec import CacheSpec
from pyvattn.units import format_size, parse_size

_MOST_ROWS, _CONTEXT, _Q_HEADS = 32, 4096, 32
_SPEC = CacheSpec(32, 8, 128, max_slots=_MOST_ROWS, max_tokens=_CONTEXT)
# Fields of Losses, and the memory that shows each.
_CASES = {
    "layer_large": ("layer", "2M", None),
    "layer_small": ("layer", "64K", None),
    "token": ("token", "2M", None),
    "token_32": ("token", "2M", 16),
}


def measure_losses(driver: str, device: int, rounds: int) -> Losses:
    """Return the share of decode time that each kind of memory of ``driver`` costs.

    Cases that the driver's pages do not have keep the built-in figure. Raises
    ``DriverUnavailable`` without a GPU or room on it and ``MissingDependency`` without
    torch.
    """
    torch = require_gpu(device)
    rows = _rows_that_fit(torch, device)
    sizes = _native.driver_capabilities(driver, device).page_sizes
    found = {}
    for name, (layout, page_size, group) in _CASES.items():
        if parse_size(page_size) in sizes:
            with _open(f"cuda:{device}", driver, layout, page_size, group, rows) as cache:
                found[name] = _loss(torch, cache, rows, rounds)
    return Losses(**found)


def _rows_that_fit(torch: Any, device: int) -> int:
    """Rows of the cache and of torch's copy of it, with a third as much to spare."""
    free, _ = torch.cuda.mem_get_info(device)
    rows = min(_MOST_ROWS, int(free // (3 * _SPEC.row_bytes)))
    if rows == 0:
        raise DriverUnavailable(
            f"{format_size(free)} are free, but kernels need {format_size(3 * _SPEC.row_bytes)}"
        )
    return rows


def _loss(torch: Any, cache: KVCache, rows: int, rounds: int) -> float:
    slots = [cache.acquire(_CONTEXT) for _ in range(rows)]
    cache.step(dict.fromkeys(slots, _CONTEXT))
    ours = [cache.layer(layer) for layer in range(_SPEC.layers)]
    plain = [tuple(torch.zeros_like(one, memory_format=torch.contiguous_format) for one in kv)
             for kv in ours]  # fmt: skip
    steps: dict[str, Callable[[], object]] = {
        "ours": _step(torch, ours, rows),
        "plain": _step(torch, plain, rows),
    }
    seconds = interleave_on_gpu(in_graphs(steps) or steps, rounds=rounds)
    for slot in slots:
        cache.release(slot)
    slower = [a / b for a, b in zip(seconds["ours"], seconds["plain"], strict=True)]
    return max(0.0, statistics.median(slower) - 1)


def _open(
    where: str, driver: str, layout: str, page_size: str, layers_per_arena: int | None, rows: int
) -> KVCache:
    # What a plan would warn of is what is measured here.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PlanWarning)
        return KVCache(
            replace(_SPEC, max_slots=rows),
            device=where,
            driver=driver,
            page_size=page_size,
            layout=layout,
            layers_per_arena=layers_per_arena,
            memory=rows * _SPEC.row_bytes * 5 // 4 + (1 << 30),
        )


def _step(torch: Any, layers: list[Any], rows: int) -> Callable[[], None]:
    from pyvattn.attention.problem import Problem
    from pyvattn.attention.registry import choose

    k = layers[0][0]
    q = torch.randn(rows, 1, _Q_HEADS, k.shape[-1], dtype=k.dtype, device=k.device)
    slots = torch.arange(rows, dtype=torch.int32, device=k.device)
    lengths = torch.full_like(slots, _CONTEXT)
    problems = [Problem(q, k, v, slots, lengths, True, k.shape[-1] ** -0.5) for k, v in layers]
    kernel = choose("auto", problems[0])

    def step() -> None:
        for problem in problems:
            kernel.attend(problem)

    return step
