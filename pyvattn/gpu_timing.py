# SPDX-License-Identifier: Apache-2.0
"""What the benches on a GPU share: the device, CUDA-event timing, and caches to compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pyvattn.cuda_graphs import GraphPool
from pyvattn.errors import DriverUnavailable, MissingDependency


def require_torch() -> Any:
    """Return torch; raise :class:`~pyvattn.errors.MissingDependency` where there is none."""
    try:
        import torch
    except ImportError as error:
        raise MissingDependency(
            "this bench runs kernels with torch: pip install 'pyvattn[torch]'"
        ) from error
    return torch


def require_gpu(device: int) -> Any:
    """Return torch with ``device`` current.

    Raises :class:`~pyvattn.errors.DriverUnavailable` where torch sees no such
    device: these figures mean nothing anywhere else.
    """
    torch = require_torch()
    if not torch.cuda.is_available():
        raise DriverUnavailable(
            f"this bench measures a GPU, and torch {torch.__version__} sees none: run it on a "
            "machine with an NVIDIA GPU and a CUDA build of torch"
        )
    if not 0 <= device < torch.cuda.device_count():
        raise DriverUnavailable(
            f"there is no device cuda:{device}: torch sees {torch.cuda.device_count()}"
        )
    torch.cuda.set_device(device)
    return torch


def interleave_on_gpu(
    alternatives: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    round_seconds: float = 0.02,
    total_seconds: float = 10.0,
) -> dict[str, list[float]]:
    """Return seconds a call on the device, by CUDA events, one value for each round.

    In each round every alternative runs in turn, as often as takes about
    ``round_seconds``, once at least. Slow ones get fewer rounds, seven at least,
    where all would take longer than ``total_seconds``.
    """
    for call in alternatives.values():
        call()
    once = {name: _time_on_gpu(call, 2) for name, call in alternatives.items()}
    calls = {name: max(1, round(round_seconds / one)) for name, one in once.items()}
    a_round = sum(calls[name] * one for name, one in once.items())
    rounds = min(rounds, max(7, int(total_seconds / a_round)))
    seconds: dict[str, list[float]] = {name: [] for name in alternatives}
    for _ in range(rounds):
        for name, call in alternatives.items():
            seconds[name].append(_time_on_gpu(call, calls[name]))
    return seconds


def in_graphs(
    alternatives: Mapping[str, Callable[[], object]],
) -> dict[str, Callable[[], object]] | None:
    """Return the replay of a CUDA graph for each call, or None where one cannot be captured.

    A replay takes the device's time only, however long Python takes to launch the
    kernels. The graphs share their memory and overwrite each other's results. Raises
    ``torch.OutOfMemoryError`` where a call or its graph has no room.
    """
    torch = require_torch()
    pool = GraphPool(torch)
    replays: dict[str, Callable[[], object]] = {}
    for name, call in alternatives.items():
        try:
            replays[name] = pool.capture(call)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # a kernel that waits for the device, say
            return None
    return replays


def _time_on_gpu(call: Callable[[], object], calls: int) -> float:
    torch = require_torch()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3 / calls
