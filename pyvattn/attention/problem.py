# SPDX-License-Identifier: Apache-2.0
"""What a kernel is given, and what it must offer."""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pyvattn.errors import ArgumentError, TensorError
from pyvattn.text import shown

# Slots and lengths come from an engine's bookkeeping (ints) or, where a CUDA
# graph is captured, live in tensors whose values the host never reads.
Indices = Sequence[int] | Tensor

# What torch's own attention takes, on every device.
TORCH_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


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


@dataclass(frozen=True)
class Problem:
    """One layer's attention for a batch of slots.

    ``q`` is ``[batch, queries, q_heads, head_dim]``; ``k`` and ``v`` are a
    layer's ``[slots, tokens, kv_heads, head_dim]`` with any strides but a
    contiguous last dimension. Row ``i`` attends to the first ``lengths[i]``
    tokens of slot ``slots[i]``.

    Queries are right-aligned: the last one stands at token ``lengths[i] - 1``.
    Where ``causal``, a row with fewer tokens than queries has queries before its
    first token; they see nothing, and their result is zero. Otherwise every query
    sees all tokens of its row. A row of no tokens is zero.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    slots: Indices
    lengths: Indices
    causal: bool
    scale: float

    @cached_property
    def host_slots(self) -> tuple[int, ...]:
        """The slots as ints; waits for the device where they are a tensor on one."""
        return _to_host(self.slots)

    @cached_property
    def host_lengths(self) -> tuple[int, ...]:
        """The lengths as ints; waits for the device where they are a tensor on one."""
        return _to_host(self.lengths)

    @cached_property
    def device_slots(self) -> Tensor:
        """The slots as an int32 tensor on the device of the queries."""
        return _to_device(self.slots, self.q.device)

    @cached_property
    def device_lengths(self) -> Tensor:
        """The lengths as an int32 tensor on the device of the queries."""
        return _to_device(self.lengths, self.q.device)

    def check(self) -> None:
        """Raise :class:`~pyvattn.errors.TensorError` where the tensors do not fit together."""
        if not isinstance(self.q, Tensor):
            raise TensorError(f"q is {shown(self.q)}: use a tensor of torch")
        if self.q.dim() != 4:
            raise TensorError(
                f"q has shape {_shape(self.q)}: use [batch, queries, q_heads, head_dim]"
            )
        for name, indices in (("slots", self.slots), ("lengths", self.lengths)):
            _check_indices(name, indices)
        batch, _, q_heads, head_dim = self.q.shape
        if not batch == len(self.slots) == len(self.lengths):
            raise TensorError(
                f"q has {batch} rows, but there are {len(self.slots)} slots and "
                f"{len(self.lengths)} lengths: give one of each for every row"
            )
        slots, tokens, kv_heads, cached_dim = self.k.shape
        if head_dim != cached_dim or q_heads % kv_heads:
            raise TensorError(
                f"q has {q_heads} heads of {head_dim}, the cache {kv_heads} KV heads of "
                f"{cached_dim}: the dims must be equal and the heads a multiple"
            )
        if self.q.dtype != self.k.dtype or self.q.device != self.k.device:
            raise TensorError(
                f"q is {self.q.dtype} on {self.q.device}, the cache {self.k.dtype} on "
                f"{self.k.device}: convert q, or make the cache with that dtype and device"
            )
        if not isinstance(self.slots, Tensor) and (slot := _outside(self.host_slots, slots - 1)):
            raise TensorError(f"slot {slot} is outside 0 to {slots - 1}, the cache's slots")
        if not isinstance(self.lengths, Tensor) and (length := _outside(self.host_lengths, tokens)):
            raise TensorError(f"length {length} is outside 0 to max_tokens={tokens}")


class Kernel(ABC):
    """One attention kernel; each lies in a file of its own."""

    #: What ``attend(kernel=...)`` takes.
    name: str
    #: What the kernel takes, in a few words for people.
    supports: str
    #: Whether slots and lengths are read on the device only, so that a CUDA graph can hold a call.
    capturable = False
    #: How many tokens past a row's length the kernel may read: the cache must guard as many.
    #: tests/gpu/overread.py measures it; what was not measured gets a cache's default guard.
    guard_tokens = 192

    def unavailable(self) -> str | None:
        """Say why the kernel cannot run on this machine, or return ``None``."""
        return None

    def unsupported(self, problem: Problem) -> str | None:
        """Say why the kernel cannot do ``problem``, or return ``None``."""
        return None

    @abstractmethod
    def attend(self, problem: Problem) -> Tensor:
        """Return the result in the shape of ``problem.q``, which has rows and queries.

        The device of the queries is torch's current one.
        """


def by_row(problem: Problem, attend_row: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
    """Attend row by row, for kernels that take one length at a time.

    ``attend_row`` gets the queries of a row that see a token,
    ``[queries, q_heads, dim]``, and views of its tokens' K and V,
    ``[tokens, kv_heads, dim]``; it returns the shape of the queries. There are
    more queries than tokens only where the problem is not causal.
    """
    out = torch.zeros_like(problem.q)
    queries = problem.q.shape[1]
    rows = zip(problem.host_slots, problem.host_lengths, strict=True)
    for row, (slot, length) in enumerate(rows):
        if length:
            count = min(queries, length) if problem.causal else queries
            k, v = problem.k[slot, :length], problem.v[slot, :length]
            out[row, -count:] = attend_row(problem.q[row, -count:], k, v)
    return out


def check_cache(cache: object) -> None:
    """Refuse what has no layers to attend to; benches bring caches of their own."""
    if not (hasattr(cache, "spec") and hasattr(cache, "layer")):
        raise ArgumentError(f"cache={shown(cache)}: pass a KVCache or a RowMap")


def _check_indices(name: str, indices: Indices) -> None:
    """Refuse what is no list of whole numbers, without waiting for a device."""
    if isinstance(indices, KnownIndices):
        return
    if isinstance(indices, Tensor):
        whole = indices.dim() == 1 and not (indices.is_floating_point() or indices.is_complex())
    else:
        try:
            whole = len([operator.index(index) for index in indices]) == len(indices)
        except TypeError:
            whole = False
    if not whole:
        raise TensorError(f"{name} {shown(indices)}: use whole numbers, one for each row of q")


def _outside(values: tuple[int, ...], most: int) -> int | None:
    """Return a value outside 0 to ``most``, or ``None``; quick where there are none."""
    if not values or (min(values) >= 0 and max(values) <= most):
        return None
    return min(values) if min(values) < 0 else max(values)


def _to_host(indices: Indices) -> tuple[int, ...]:
    if isinstance(indices, KnownIndices):
        return indices
    if isinstance(indices, Tensor):
        indices = indices.tolist()  # one transfer for all
    return tuple(operator.index(index) for index in indices)


def _to_device(indices: Indices, device: torch.device) -> Tensor:
    if isinstance(indices, KnownIndices):
        indices = indices.tensor
    if isinstance(indices, Tensor):
        return indices.to(device=device, dtype=torch.int32)
    return torch.tensor(_to_host(indices), dtype=torch.int32, device=device)


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)
