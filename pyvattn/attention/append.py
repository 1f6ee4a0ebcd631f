# SPDX-License-Identifier: Apache-2.0
"""Writes new tokens into the cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from pyvattn.attention.problem import check_cache
from pyvattn.errors import TensorError
from pyvattn.text import shown

if TYPE_CHECKING:
    from pyvattn.cache import KVCache
    from pyvattn.rows import RowMap


def append(
    cache: KVCache | RowMap, layer: int, slots: Tensor, positions: Tensor, k: Tensor, v: Tensor
) -> None:
    """Write the K and V of new tokens into one layer of the cache.

    ``k`` and ``v`` are ``[..., kv_heads, head_dim]``; ``slots`` and
    ``positions`` are integer tensors on the same device that broadcast to
    their leading dimensions, so ``[batch, 1]`` slots with ``[batch, tokens]``
    positions write a rectangle and two ``[tokens]`` write any set of tokens.
    The call reads no value on the host and can be captured in a CUDA graph.

    ``cache.step`` must have backed the positions: writing past what it backed
    is a fault of the process, as with any wild pointer.

    Raises :class:`~pyvattn.errors.ArgumentError` for what is no cache, and
    :class:`~pyvattn.errors.TensorError` for tensors that do not fit.
    """
    check_cache(cache)
    given = {"slots": slots, "positions": positions, "k": k, "v": v}
    for name, value in given.items():
        if not isinstance(value, Tensor):
            raise TensorError(f"{name} is {shown(value)}: use a tensor of torch")
    k_cache, v_cache = cache.layer(layer)
    for new, cached in ((k, k_cache), (v, v_cache)):
        if new.shape[-2:] != cached.shape[-2:]:
            raise TensorError(
                f"new tokens have shape {list(new.shape)}, the cache has heads of "
                f"{list(cached.shape[-2:])}: use [..., kv_heads, head_dim]"
            )
        if new.dtype != cached.dtype or new.device != cached.device:
            raise TensorError(
                f"new tokens are {new.dtype} on {new.device}, the cache {cached.dtype} on "
                f"{cached.device}: convert them, or make the cache with that dtype and device"
            )
        cached.index_put_((slots, positions), new)
