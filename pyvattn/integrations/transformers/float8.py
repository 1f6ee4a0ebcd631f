# SPDX-License-Identifier: Apache-2.0
"""Float8 K and V in the library's caches: where their scales come from."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyvattn.arguments import check_type
from pyvattn.attention import KVScales, scales_of, set_scales
from pyvattn.attention.quantise import dequantised

if TYPE_CHECKING:
    from pyvattn.cache import KVCache

#: What ``kv_scales`` may be: scales, the file of some, or nothing to calibrate them.
GivenScales = KVScales | str | PathLike[str] | None


def give_scales(kv: KVCache, given: GivenScales) -> None:
    """Give ``kv`` the scales that were given; a float8 cache without any is to calibrate its own.

    Raises what :func:`pyvattn.attention.set_scales` and :meth:`KVScales.load` raise, and
    :class:`~pyvattn.errors.ArgumentError` for what is neither scales nor a file.
    """
    check_type("kv_scales", given, KVScales, str, PathLike, type(None))
    if isinstance(given, (str, PathLike)):
        given = KVScales.load(Path(given), kv.device)
    if given is None:
        if not kv.spec.dtype.startswith("float8") or scales_of(kv) is not None:
            return
        given = KVScales.to_calibrate(kv)
    set_scales(kv, given)


def calibrate(kv: KVCache, layer: int, k: Tensor, v: Tensor) -> None:
    """Set the scales of a layer by the first tokens that it is to hold, where they are not set."""
    scales = scales_of(kv)
    if scales is not None and scales.is_pending(layer) and k.numel():
        scales.calibrate(layer, k, v, kv.layer(layer)[0].dtype)


def widened(kv: KVCache, layer: int, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return K and V of a layer, ``[rows, kv_heads, tokens, head_dim]``, float8 as float32."""
    scales = scales_of(kv)
    if scales is None:
        return pair
    k, v = (
        dequantised(each.transpose(1, 2), scale, torch.float32).transpose(1, 2)
        for each, scale in zip(pair, scales.of(layer), strict=True)
    )
    return k, v
