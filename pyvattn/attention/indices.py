# SPDX-License-Identifier: Apache-2.0
"""Slots, lengths and the like: one whole number for each row of a batch."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import TypeGuard

import torch
from torch import Tensor

from pyvattn.errors import TensorError
from pyvattn.text import shown

# They come from an engine's bookkeeping (ints) or, where a CUDA graph is captured, live in
# tensors whose values the host never reads.
Indices = Sequence[int] | Tensor


class KnownIndices(tuple[int, ...]):
    """Indices that the host knows and that lie on a device as well.

    Kernels of either kind read them without a transfer. ``tensor`` is int32.
    """

    tensor: Tensor

    @classmethod
    def of(cls, values: Sequence[int], tensor: Tensor) -> KnownIndices:
        """Join ``values`` and the tensor that holds the same."""
        indices = cls(values)
        indices.tensor = tensor.to(torch.int32)
        return indices


def check_indices(name: str, indices: Indices | None, rows: int | None) -> Indices:
    """Return ``indices``, or refuse what is no list of ``rows`` whole numbers.

    A device is not waited for.
    """
    if not _whole(indices):
        raise TensorError(f"{name} {shown(indices)}: use whole numbers, one for each row of q")
    if rows is not None and len(indices) != rows:
        raise TensorError(
            f"q has {rows} rows, but there are {len(indices)} {name}: give one for every row"
        )
    return indices


def _whole(indices: Indices | None) -> TypeGuard[Indices]:
    if isinstance(indices, KnownIndices):
        return True
    if isinstance(indices, Tensor):
        return indices.dim() == 1 and not (indices.is_floating_point() or indices.is_complex())
    if indices is None:
        return False
    try:
        return len([operator.index(index) for index in indices]) == len(indices)
    except TypeError:
        return False


def outside(values: tuple[int, ...], most: int) -> int | None:
    """Return a value outside 0 to ``most``, or ``None``; quick where there are none."""
    if not values or (min(values) >= 0 and max(values) <= most):
        return None
    return min(values) if min(values) < 0 else max(values)


def to_host(indices: Indices) -> tuple[int, ...]:
    """Return the indices as ints; waits for the device where they are a tensor on one."""
    if isinstance(indices, KnownIndices):
        return indices
    if isinstance(indices, Tensor):
        indices = indices.tolist()  # one transfer for all
    return tuple(operator.index(index) for index in indices)


def to_device(indices: Indices, device: torch.device) -> Tensor:
    """Return the indices as an int32 tensor on ``device``."""
    if isinstance(indices, KnownIndices):
        indices = indices.tensor
    if isinstance(indices, Tensor):
        return indices.to(device=device, dtype=torch.int32)
    return torch.tensor(to_host(indices), dtype=torch.int32, device=device)
