# SPDX-License-Identifier: Apache-2.0
"""Layers that cache latent vectors (multi-head latent attention).

The library's models hand the cache a latent vector and a rotary key for each new token, get
those of all tokens back, expand them into K and V heads, and attend to these. So what a layer
gets back is dense, ``[rows, 1, tokens, dim]``, a row for each slot of the pass, and its attention
is to the expanded rows in place of the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from pyvattn.attention.indices import Indices, to_device, to_host
from pyvattn.errors import UnsupportedError

if TYPE_CHECKING:
    from pyvattn.cache import KVCache
    from pyvattn.integrations.transformers.parts import Part
    from pyvattn.spec import CacheSpec


def latent_dim(spec: CacheSpec, layer: int) -> int:
    """Return the width of a layer's latent vectors, 0 where it keeps K and V."""
    return spec.parts[spec.group_of(layer)[0]].latent_dim


@dataclass(frozen=True)
class LatentRows:
    """The slots of a pass in the order of the expanded rows, and the tokens of each."""

    slots: tuple[int, ...]
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, parts: Sequence[Part]) -> LatentRows:
        """Return the rows of all parts. Reads slots and lengths on the host."""
        if any(isinstance(part.lengths, Tensor) for part in parts):
            raise UnsupportedError(
                "layers that expand latent vectors need the lengths of rows on the host, which no "
                "captured step has: use graphs=False"
            )
        found: dict[int, int] = {}
        for part in parts:
            for slot, length in zip(to_host(part.slots), to_host(part.lengths), strict=True):
                found[slot] = max(length, found.get(slot, 0))
        return cls(tuple(found), tuple(found.values()))

    @property
    def tokens(self) -> int:
        """The tokens of the longest row."""
        return max(self.lengths)

    def read(self, kv: KVCache, layer: int) -> tuple[Tensor, Tensor]:
        """Return the rows' latent vectors and rotary keys, each ``[rows, 1, tokens, dim]``."""
        k = kv.layer(layer)[0]
        ends = to_device(self.lengths, k.device)[:, None]
        gone = torch.arange(self.tokens, device=k.device) >= ends
        rows = k[to_device(self.slots, k.device).long(), : self.tokens]
        # What lies behind a row may be anything, and 0 x NaN is NaN.
        rows = rows.masked_fill(gone[..., None, None], 0).transpose(1, 2)
        width = latent_dim(kv.spec, layer)
        return rows[..., :width], rows[..., width:]

    def attend(self, part: Part, q: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Attend a part's queries, ``[rows, queries, heads, dim]``, to the expanded rows.

        ``key`` and ``value`` are ``[rows, heads, tokens, dim]`` of all rows of the pass.
        """
        seen = _seen(part.lengths, q.shape[1], self.tokens, q.device)
        places = [self.slots.index(slot) for slot in to_host(part.slots)]
        if places != list(range(len(self.slots))):
            chosen = to_device(places, q.device).long()
            key, value = key[chosen], value[chosen]
        out = scaled_dot_product_attention(
            q.transpose(1, 2),
            key,
            value,
            # Padding in front of a row sees a token all the same, as no softmax is of nothing.
            attn_mask=(seen | ~seen.any(-1, keepdim=True))[:, None],
            scale=scale,
            enable_gqa=q.shape[2] != key.shape[1],
        )
        return out.transpose(1, 2).masked_fill(~seen.any(-1)[..., None, None], 0)


def _seen(lengths: Indices, queries: int, tokens: int, device: torch.device) -> Tensor:
    """Return which tokens each query sees, ``[rows, queries, tokens]``; queries end the rows."""
    ends = to_device(lengths, device)[:, None]
    place = ends - queries + torch.arange(queries, device=device)
    return torch.arange(tokens, device=device) <= place[..., None]
