# SPDX-License-Identifier: Apache-2.0
"""What `after=` may be: the work that must finish before memory is touched again."""

from __future__ import annotations

import sys
from typing import Any

from pyvattn import _native
from pyvattn.arguments import check_name, check_ordinal
from pyvattn.errors import ConfigError
from pyvattn.text import shown
from pyvattn.whole_numbers import whole_number

__all__ = ["fence_after"]


def fence_after(driver: str, device: int, after: object) -> _native.Fence | None:
    """Return the fence that ``after`` stands for, or ``None`` where there is nothing to wait for.

    ``after`` is a stream (``torch.cuda.Stream``, anything with
    ``__cuda_stream__``, or the integer of a CUstream), a recorded
    ``torch.cuda.Event``, a fence, or ``None``. On a CUDA device ``None`` means
    the stream that torch is using in this thread, or the default stream where
    torch is not loaded. The fence survives what it was made from.

    Raises :class:`~pyvattn.errors.ConfigError` for anything else, and for a
    stream or event where the driver has none.
    """
    check_name("driver", driver, such_as="cumem")
    device = check_ordinal("device", device)
    if after is None:
        if not _native.has_streams(driver):
            return None
        return _native.stream_fence(driver, device, _current_stream(driver, device))
    if isinstance(after, _native.Fence):
        return after
    event = getattr(after, "cuda_event", None)
    if event is not None:
        return _event_fence(driver, device, _handle(event, after))
    return _native.stream_fence(driver, device, _stream_handle(after))


def _current_stream(driver: str, device: int) -> int:
    torch: Any = sys.modules.get("torch")
    if torch is None or _native.emulates(driver) or not torch.cuda.is_initialized():
        return 0
    return int(torch.cuda.current_stream(device).cuda_stream)


def _event_fence(driver: str, device: int, event: int) -> _native.Fence:
    if event == 0:
        raise ConfigError("after= is an event that was never recorded: call event.record() first")
    return _native.event_fence(driver, device, event)


def _stream_handle(after: object) -> int:
    if whole_number(after) is not None:
        return _handle(after, after)
    handle = getattr(after, "cuda_stream", None)  # torch
    if handle is None and hasattr(after, "__cuda_stream__"):
        handle = after.__cuda_stream__()[1]  # cuda.core, CuPy and others: (version, handle)
    return _handle(handle, after)


def _handle(handle: object, after: object) -> int:
    """Return what CUDA knows a stream or event by, which ``after`` gave: a pointer."""
    # The handles of cuda-python have __int__ only.
    is_number = hasattr(type(handle), "__int__") and not isinstance(handle, (bool, float))
    number = int(handle) if is_number else -1  # type: ignore[call-overload]
    if not 0 <= number < 1 << 64:
        raise ConfigError(
            f"after={shown(after)} is not a CUDA stream or event: pass a torch.cuda.Stream, a "
            "recorded torch.cuda.Event or an object with __cuda_stream__"
        )
    return int(number)
