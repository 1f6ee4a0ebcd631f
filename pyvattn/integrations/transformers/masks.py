# SPDX-License-Identifier: Apache-2.0
"""Which of the library's masks the cache's attention can do without a mask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers.masking_utils import (
    causal_mask_function,
    chunked_causal_mask_function,
    sliding_window_causal_mask_function,
)

_FULL = 0


def mask_window(mask_function: Callable[..., Any], local_size: int | None) -> int | None:
    """Return the window of a causal mask, 0 for none; ``None`` for a mask of another kind.

    ``local_size`` is what the library says beside it: the window, if the mask has one.
    """
    if mask_function is causal_mask_function:
        return _FULL
    if not isinstance(local_size, int) or local_size < 1:
        return None
    sliding = sliding_window_causal_mask_function(local_size)
    return local_size if _same(mask_function, sliding) else None


def is_chunked(mask_function: Callable[..., Any], local_size: int | None) -> bool:
    """Whether a causal mask is within chunks of ``local_size``, from each row's first token on."""
    padding = _tensor_of(mask_function)
    if padding is None or not isinstance(local_size, int) or local_size < 1:
        return False
    return _same(mask_function, chunked_causal_mask_function(local_size, padding))


def _tensor_of(held: Any) -> Tensor | None:
    """Return the first tensor that a function, or one of those that it calls, has kept."""
    if isinstance(held, Tensor):
        return held
    inner = held if isinstance(held, tuple) else _held(held) if callable(held) else ()
    return next((found for one in inner if (found := _tensor_of(one)) is not None), None)


def _same(one: Any, other: Any) -> bool:
    """Whether two functions run the same code over the same values."""
    if one is other:
        return True
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if getattr(one, "__code__", 1) is not getattr(other, "__code__", 2):
        return type(one) is int and type(other) is int and one == other
    return _same(_held(one), _held(other))


def _held(function: Any) -> tuple[Any, ...]:
    return tuple(cell.cell_contents for cell in getattr(function, "__closure__", None) or ())
