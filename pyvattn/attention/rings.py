# SPDX-License-Identifier: Apache-2.0
"""Attending to rows that are rings: where a run of tokens lies in them.

Token ``p`` of a ring of ``R`` lies at ``p`` modulo ``R``, and the ring is mapped twice side by
side, so that the tokens from ``start`` on are contiguous from ``start`` modulo ``R``. Kernels are
told that, as they are told where rows begin that are padded on the left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from pyvattn.attention.indices import Indices, KnownIndices, to_device, to_host
from pyvattn.attention.windows import source_of
from pyvattn.errors import TensorError

if TYPE_CHECKING:
    from pyvattn.cache import KVCache
    from pyvattn.rows import BlockPool, RowMap


def ring_of(cache: KVCache | RowMap, layer: int) -> int:
    """Return how many tokens the ring of a layer has; 0 where its rows are none."""
    spec = cache.spec
    if not spec.groups:
        return 0
    place, _ = spec.group_of(source_of(spec, layer))
    if not spec.groups[place].ring:
        return 0
    # A row map's geometry is that of the pool that its blocks are of.
    pool: BlockPool | None = getattr(cache, "pool", None)
    geometries = cast("KVCache", cache).geometries if pool is None else pool.geometries
    return geometries[place].ring_tokens


def check_spans(starts: Indices, lengths: Indices, most: int) -> None:
    """Refuse rows that attend to more tokens than a ring keeps beside those to come.

    A device is not waited for.
    """
    if isinstance(starts, Tensor) or isinstance(lengths, Tensor):
        return
    spans = [end - start for start, end in zip(to_host(starts), to_host(lengths), strict=True)]
    longest = max(spans, default=0)
    if longest > most:
        raise TensorError(
            f"row {spans.index(longest)} attends to {longest} tokens of a layer whose rows are "
            f"rings with room for {most}: append and attend to no more than cache.chunk_tokens "
            "new tokens at a time"
        )


def in_ring(starts: Indices, lengths: Indices, ring: int) -> tuple[Indices, Indices]:
    """Return where tokens ``starts`` to ``lengths`` of each row begin and end in its ring.

    No value is read on the host that lies on a device.
    """
    if isinstance(starts, Tensor):
        return _on_device(starts, to_device(lengths, starts.device), ring)
    if isinstance(lengths, Tensor):
        return _on_device(
            to_device(starts, lengths.device), to_device(lengths, lengths.device), ring
        )
    pairs = list(zip(to_host(starts), to_host(lengths), strict=True))
    first = [start % ring for start, _ in pairs]
    end = [start % ring + max(0, length - start) for start, length in pairs]
    if not (isinstance(starts, KnownIndices) and isinstance(lengths, KnownIndices)):
        return first, end
    begins, ends = _on_device(starts.tensor, lengths.tensor, ring)
    return KnownIndices.of(first, begins), KnownIndices.of(end, ends)


def _on_device(starts: Tensor, lengths: Tensor, ring: int) -> tuple[Tensor, Tensor]:
    first = torch.remainder(starts, ring)
    return first, first + (lengths - starts).clamp(min=0)
