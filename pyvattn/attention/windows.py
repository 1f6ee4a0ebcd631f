# SPDX-License-Identifier: Apache-2.0
"""Attending to layers that keep no more than a window: kernels are told where it begins."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyvattn.attention.indices import Indices, KnownIndices, to_device, to_host
from pyvattn.attention.problem import UNLIMITED
from pyvattn.whole_numbers import whole_number

if TYPE_CHECKING:
    from pyvattn.spec import CacheSpec


def window_of(spec: CacheSpec, layer: int) -> int | None:
    """Return how many tokens a layer keeps."""
    return spec.window_of(layer) if spec.groups else None


def guard_of(spec: CacheSpec, layer: int) -> int:
    """Return the tail guard of a layer."""
    return spec.guard_of(layer) if spec.groups else spec.guard_tokens


def keeps_latent(spec: CacheSpec, layer: int) -> bool:
    """Whether a layer keeps latent vectors in place of K and V."""
    if not spec.groups:
        return spec.kind == "mla"
    return bool(spec.groups[spec.group_of(layer)[0]].latent_dim)


def source_of(spec: CacheSpec, layer: int) -> int:
    """Return the layer whose K and V a layer reads; -1 is the last layer, as for ``cache.layer``.

    What there is no layer of is returned as it is, for the cache to refuse.
    """
    number = whole_number(layer)
    if not spec.groups or number is None or not -spec.layers <= number < spec.layers:
        return layer
    return spec.source_of(number % spec.layers)


def narrowed(window_size: tuple[int, int], window: int) -> tuple[int, int]:
    """Return the part of ``window_size`` that lies in a window of so many tokens."""
    left, right = window_size
    return (window - 1 if left == UNLIMITED else min(left, window - 1)), right


def starts_of(
    lengths: Indices, counts: Indices | int, window: int, starts: Indices | None
) -> Indices:
    """Return where the window of each row's first query begins, and no less than ``starts``.

    ``counts`` are the queries of each row. No value is read on the host that lies on a device.
    """
    parts = [part for part in (lengths, counts, starts) if part is not None]
    if any(isinstance(part, Tensor) for part in parts):
        return _on_device(lengths, counts, window, starts)
    assert not isinstance(lengths, Tensor)
    rows = len(lengths)
    each = (counts,) * rows if isinstance(counts, int) else to_host(counts)
    least = (0,) * rows if starts is None else to_host(starts)
    first = [
        max(least[row], length - each[row] - window + 1)
        for row, length in enumerate(to_host(lengths))
    ]
    if not isinstance(lengths, KnownIndices):
        return first
    return KnownIndices.of(first, _on_device(lengths, counts, window, starts))


def _on_device(
    lengths: Indices, counts: Indices | int, window: int, starts: Indices | None
) -> Tensor:
    parts = [part for part in (lengths, counts, starts) if isinstance(part, (Tensor, KnownIndices))]
    one = parts[0]
    device = one.device if isinstance(one, Tensor) else one.tensor.device
    each = counts if isinstance(counts, int) else to_device(counts, device)
    first = to_device(lengths, device) - each - (window - 1)
    return first.clamp(min=0) if starts is None else torch.maximum(first, to_device(starts, device))
