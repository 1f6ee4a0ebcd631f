# SPDX-License-Identifier: Apache-2.0
"""How far past a row's length one attention kernel reads: a program of its own.

A fault ends the CUDA context, so each kernel, head dim and kind of queries gets a process:

    python tests/gpu/overread.py KERNEL HEAD_DIM decode|chunk|prefill [cumem-emulated]

It prints one line of JSON: ``unmapped`` is the least number of tokens that must be mapped
past the length so that nothing faults, ``finite`` the least number that must be finite so
that the result is. Both are found over lengths one past a multiple of every usual tile.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable

import torch

from pyvattn import CacheSpec, KVCache
from pyvattn.attention import kernel_infos
from pyvattn.attention.kernel import Kernel
from pyvattn.attention.problem import Problem
from pyvattn.attention.registry import choose
from pyvattn.errors import DriverError, UnsupportedError

KV_HEADS, Q_HEADS = 8, 32
MAPPED = 8 << 20
TILES = (16, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 224, 240, 256)
LENGTHS = tuple(sorted({length for tile in TILES for length in (-(-1024 // tile) * tile + 1,)}))
QUERIES = {"decode": 1, "chunk": 64, "prefill": 0}
MOST = 256
# For FlexAttention, which may compile again, and the CPU.
COARSE = (256, 192, 176, 160, 129, 128, 127, 64, 63, 33, 32, 31, 16, 15, 8, 7, 4, 2, 1, 0)


def rows(
    cache: KVCache, length: int, past: int, queries: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, and K and V that begin so that ``past`` tokens after ``length`` are mapped."""
    k, v = cache.layer(0)
    token = k.stride(1)
    mapped = MAPPED // (token * k.element_size())
    start = (mapped - length - past) * token
    # Whole blocks of any paged kernel.
    tokens = (k.shape[1] - mapped + length + past) // MOST * MOST
    shape = (1, tokens, *k.shape[2:])
    views = [each.as_strided(shape, each.stride(), start) for each in (k, v)]
    q = torch.ones(1, queries or length, Q_HEADS, k.shape[3], dtype=k.dtype, device=k.device)
    return q, views[0], views[1]


def attend(kernel: Kernel, cache: KVCache, length: int, past: int, queries: int) -> torch.Tensor:
    """Attend once, with ``past`` tokens mapped after ``length``."""
    q, k, v = rows(cache, length, past, queries)
    problem = Problem(q, k, v, [0], [length], True, q.shape[-1] ** -0.5)
    if reason := kernel.unsupported(problem):
        raise UnsupportedError(reason)
    return kernel.attend(problem)


def least(distances: Iterable[int], clean: Callable[[int], bool]) -> int | None:
    """The least number of tokens that is clean, or None where the most is not."""
    found = None
    for past in distances:
        if not clean(past):
            break
        found = past
    return found


def measure(kernel_name: str, head_dim: int, kind: str, driver: str) -> dict[str, object]:
    """Find both numbers for one kernel."""
    dtype = "float32" if driver.endswith("emulated") else "bfloat16"
    device = "cpu" if driver.endswith("emulated") else "cuda"
    spec = CacheSpec(1, KV_HEADS, head_dim, dtype, max_slots=1, max_tokens=1, guard_tokens=0)
    tokens = 2 * MAPPED // spec.tensor_token_bytes
    spec = CacheSpec(1, KV_HEADS, head_dim, dtype, max_slots=1, max_tokens=tokens, guard_tokens=0)
    cache = KVCache(
        spec, device=device, driver=driver, page_size="2M", layout="layer", memory="64MiB",
        background=False,
    )  # fmt: skip
    slot = cache.acquire(tokens // 2)
    cache.step({slot: tokens // 2})
    q, k, v = rows(cache, LENGTHS[0], MOST, QUERIES[kind])
    kernel = choose(kernel_name, Problem(q, k, v, [0], [LENGTHS[0]], True, 1.0))

    def synchronize() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def finite(past: int) -> bool:
        good = True
        for length in LENGTHS:
            _, k, v = rows(cache, length, MOST, QUERIES[kind])
            for each in (k, v):
                each[:, : length + past] = 0.5
                each[:, length + past : length + MOST] = float("nan")
            out = attend(kernel, cache, length, MOST, QUERIES[kind])
            good = good and bool((out - 0.5).abs().max() < 0.01)
        return good

    def mapped(past: int) -> bool:
        try:
            for length in LENGTHS:
                attend(kernel, cache, length, past, QUERIES[kind])
            synchronize()
        except (RuntimeError, DriverError) as error:
            if "illegal memory access" not in str(error):
                raise
            return False
        return True

    coarse = kernel_name == "flex" or device == "cpu"
    distances = COARSE if coarse else range(MOST, -1, -1)
    needs_finite = least(distances, finite)
    for each in cache.layer(0):
        each[:, : tokens // 2] = 0.5
    return {"finite": needs_finite, "unmapped": least(distances, mapped)}


def main() -> None:
    kernel, head_dim, kind, *rest = sys.argv[1:]
    result: dict[str, object] = {"kernel": kernel, "head_dim": int(head_dim), "kind": kind}
    why = {info.name: info.unavailable for info in kernel_infos()}
    try:
        if why.get(kernel):
            raise UnsupportedError(str(why[kernel]))
        result |= measure(kernel, int(head_dim), kind, rest[0] if rest else "cumem")
    except UnsupportedError as error:
        result["unsupported"] = str(error)
    print(json.dumps(result), flush=True)
    # A context that faulted cannot be closed in order.
    sys.stdout.flush()
    import os

    os._exit(0)


if __name__ == "__main__":
    main()
