"""What one forward pass of the model reads and writes in the cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyvattn.attention import append, attend
from pyvattn.errors import UnsupportedError

if TYPE_CHECKING:
    from pyvattn.cache import KVCache


@dataclass
class ForwardPass:
    """Rows of the cache, how far each is filled afterwards, and where new tokens go.

    The library hands it to every attention layer in place of a mask. ``counts``
    are the tokens that the pass adds to each row; a row that adds fewer than
    ``queries`` is padded on the left, and its padding is neither stored nor
    attended to. The tokens must be backed: ``KVCache.step`` comes first.
    """

    kv: KVCache
    slots: tuple[int, ...]
    lengths: tuple[int, ...]
    counts: tuple[int, ...]
    queries: int
    device: torch.device
    layer: int = field(default=-1, init=False)

    def __post_init__(self) -> None:
        starts = [n - added for n, added in zip(self.lengths, self.counts, strict=True)]
        self._padded = any(added < self.queries for added in self.counts)
        rows, columns = self._real_tokens() if self._padded else self._all_tokens()
        pads = self._tensor([self.queries - added for added in self.counts])
        self._source = (rows, columns)
        self._slots = self._tensor(self.slots)[rows]
        self._positions = (self._tensor(starts) - pads)[rows] + columns

    def store(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Write ``[batch, kv_heads, queries, head_dim]`` of ``layer`` into the rows."""
        if key.requires_grad:
            raise UnsupportedError(
                "the cache does not carry gradients: call the model under torch.no_grad()"
            )
        self.layer = layer
        k, v = key.transpose(1, 2), value.transpose(1, 2)
        if self._padded:
            k, v = k[self._source], v[self._source]
        append(self.kv, layer, self._slots, self._positions, k, v)

    def attend(self, query: Tensor, scale: float | None) -> Tensor:
        """Attend ``[batch, q_heads, queries, head_dim]`` to the layer stored last.

        The result is ``[batch, queries, q_heads, head_dim]``, as the library has it.
        """
        q = query.transpose(1, 2)
        return attend(q, self.kv, self.layer, self.slots, self.lengths, causal=True, scale=scale)

    def _all_tokens(self) -> tuple[Tensor, Tensor]:
        rows = torch.arange(len(self.slots), device=self.device)[:, None]
        return rows, torch.arange(self.queries, device=self.device)[None, :]

    def _real_tokens(self) -> tuple[Tensor, Tensor]:
        first = self._tensor([self.queries - added for added in self.counts])
        columns = torch.arange(self.queries, device=self.device)
        rows, columns = (columns[None, :] >= first[:, None]).nonzero(as_tuple=True)
        return rows, columns

    def _tensor(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.device)
