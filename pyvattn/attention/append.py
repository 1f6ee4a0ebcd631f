# SPDX-License-Identifier: Apache-2.0
"""Writes new tokens into the cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyvattn.attention.fused import append_fused, is_fused
from pyvattn.attention.kv_scales import scales_of
from pyvattn.attention.problem import FLOAT8, TORCH_DTYPES, check_cache
from pyvattn.attention.quantise import quantised
from pyvattn.attention.rings import ring_of
from pyvattn.attention.windows import source_of
from pyvattn.errors import TensorError, UnsupportedError
from pyvattn.nvtx import ranged
from pyvattn.text import shown
from pyvattn.whole_numbers import whole_number

_WHOLE = (torch.int64, torch.int32)

if TYPE_CHECKING:
    from pyvattn.cache import KVCache
    from pyvattn.rows import RowMap


@ranged("pyvattn.append")
def append(
    cache: KVCache | RowMap, layer: int, slots: Tensor, positions: Tensor, k: Tensor, v: Tensor
) -> None:
    """Write the K and V of new tokens into one layer of the cache.

    ``k`` and ``v`` are ``[..., kv_heads, head_dim]``, ``v`` as wide as V is; ``slots`` and
    ``positions`` are integer tensors on the same device that broadcast to
    their leading dimensions, so ``[batch, 1]`` slots with ``[batch, tokens]``
    positions write a rectangle and two ``[tokens]`` write any set of tokens.
    The call reads no value on the host and can be captured in a CUDA graph, once it has run with
    tensors like these. On a GPU many tokens are stored by one Triton kernel.

    A float8 cache with scales (:func:`pyvattn.attention.set_scales`) takes float32, float16 and
    bfloat16: values are divided by the scale of their head and rounded, and what is too large
    becomes the largest float8. Tokens that are float8 already are stored as they are.

    ``cache.step`` must have backed the positions: writing past what it backed
    is a fault of the process, as with any wild pointer. Numbers below 0 count from the end.

    In layers whose rows are rings a token takes the place of an older one. Append no more than
    ``cache.chunk_tokens`` tokens of a row, attend to them, and go on with the next; more in one
    rectangle are refused.

    Raises :class:`~pyvattn.errors.ArgumentError` for what is no cache,
    :class:`~pyvattn.errors.UnsupportedError` for a layer that reads another's K and V, and
    :class:`~pyvattn.errors.TensorError` for tensors that do not fit.
    """
    check_cache(cache)
    given = {"slots": slots, "positions": positions, "k": k, "v": v}
    for name, value in given.items():
        if not isinstance(value, Tensor):
            raise TensorError(f"{name} is {shown(value)}: use a tensor of torch")
    for name, places in (("slots", slots), ("positions", positions)):
        if places.dtype not in _WHOLE:  # booleans would be a mask
            raise TensorError(f"{name} is a tensor of {places.dtype}: use torch.int64")
    _check_own(cache, layer)
    k_cache, v_cache = cache.layer(layer)
    if ring := ring_of(cache, layer):
        _check_chunk(k, cache.chunk_tokens)
        positions = torch.remainder(positions, ring)
    scales = scales_of(cache)
    for name, new, cached in (("k", k, k_cache), ("v", v, v_cache)):
        _check_new(name, new, cached, scales is not None)
    if k.shape[:-2] != v.shape[:-2]:
        raise TensorError(f"k is {list(k.shape)} and v {list(v.shape)}: give both for each token")
    if k.dtype != v.dtype:
        raise TensorError(f"k is {k.dtype} and v {v.dtype}: give both in one dtype")
    small = None
    if k.dtype != k_cache.dtype:
        assert scales is not None
        small = scales.of(layer)
    if is_fused(slots, positions, k, k_cache) and _has_room(slots, positions, k):
        append_fused(slots, positions, (k, v), (k_cache, v_cache), small)
        return
    if small is not None:
        k, v = quantised(k, small.k, k_cache.dtype), quantised(v, small.v, v_cache.dtype)
    try:
        k_cache.index_put_((slots, positions), k)
        v_cache.index_put_((slots, positions), v)
    except IndexError as error:  # only where the host reads the places
        raise TensorError(f"slots or positions are outside the cache: {error}") from error
    except RuntimeError as error:
        if _has_room(slots, positions, k):
            raise
        raise TensorError(
            f"slots of shape {list(slots.shape)} and positions of {list(positions.shape)} name no "
            f"place for each token of k, which is {list(k.shape)}: they must broadcast to its "
            "leading dimensions"
        ) from error


def _check_own(cache: KVCache | RowMap, layer: int) -> None:
    """Refuse a layer that reads another's: its K and V would take the place of that one's."""
    if not cache.spec.shared:
        return
    source = source_of(cache.spec, layer)
    if (whole_number(layer) or 0) % cache.spec.layers != source:
        raise UnsupportedError(
            f"layer {layer} reads the K and V of layer {source} and keeps none: append to that one"
        )


def _check_chunk(k: Tensor, most: int | None) -> None:
    if most is not None and k.dim() > 3 and k.shape[-3] > most:
        raise TensorError(
            f"{k.shape[-3]} new tokens for rows that are rings: append and attend to no more than "
            f"cache.chunk_tokens, {most}, at a time"
        )


def _check_new(name: str, new: Tensor, cached: Tensor, has_scales: bool) -> None:
    if new.shape[-2:] != cached.shape[-2:]:
        raise TensorError(
            f"new tokens' {name} has shape {list(new.shape)}, the cache has heads of "
            f"{list(cached.shape[-2:])}: use [..., kv_heads, head_dim]"
        )
    quantises = cached.dtype in FLOAT8 and new.dtype in TORCH_DTYPES
    if quantises and not has_scales:
        raise TensorError(
            f"new tokens' {name} is {new.dtype} for a cache of {cached.dtype} without scales: "
            "give it some with set_scales()"
        )
    if (new.dtype != cached.dtype and not quantises) or new.device != cached.device:
        raise TensorError(
            f"new tokens' {name} is {new.dtype} on {new.device}, the cache {cached.dtype} on "
            f"{cached.device}: convert it, or make the cache with that dtype and device"
        )


def _has_room(slots: Tensor, positions: Tensor, new: Tensor) -> bool:
    """Whether there is a place for each new token."""
    try:
        places = torch.broadcast_shapes(slots.shape, positions.shape)
        needed = torch.broadcast_shapes(places, new.shape[:-2])
    except RuntimeError:
        return False
    return tuple(needed) == tuple(places)
