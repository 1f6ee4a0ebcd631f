"""What one forward pass of the model reads and writes in the cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyvattn.attention import append, attend
from pyvattn.errors import UnsupportedError
from pyvattn.integrations.transformers.parts import Chunk, Part, known, parts_of, upload

if TYPE_CHECKING:
    from pyvattn.cache import KVCache


@dataclass
class ForwardPass:
    """Where the new tokens of a pass go, and what they attend to.

    The library hands it to every attention layer in place of a mask. ``slots`` and
    ``positions`` (int64 tensors on the model's device) say where each new token is
    stored; they broadcast to ``[batch, queries]``. ``source`` picks the real tokens
    where the batch holds padding as well, which is neither stored nor attended to.
    The tokens must be backed: ``KVCache.step`` comes first.
    """

    kv: KVCache
    queries: int
    slots: Tensor
    positions: Tensor
    parts: Sequence[Part]
    source: tuple[Tensor, Tensor] | None = None
    layer: int = field(default=-1, init=False)

    @classmethod
    def of_batch(
        cls,
        kv: KVCache,
        slots: Sequence[int],
        lengths: Sequence[int],
        counts: Sequence[int],
        queries: int,
        device: torch.device,
    ) -> ForwardPass:
        """Return the pass of a batch with one slot for each row.

        ``lengths`` are those afterwards. ``counts`` are the tokens that the pass adds to
        each row; a row that adds fewer than ``queries`` is padded on the left.
        """
        part = Part(known(slots, device), known(lengths, device))
        rows = upload(slots, device)[:, None]
        at = upload(lengths, device)[:, None] + torch.arange(-queries, 0, device=device)
        if all(count == queries for count in counts):
            return cls(kv, queries, rows, at, [part])
        # Found on the host: what nonzero() finds on a device has to be waited for.
        first = queries - torch.tensor(counts)
        real = (torch.arange(queries) >= first[:, None]).nonzero(as_tuple=True)
        source = upload(real[0], device), upload(real[1], device)
        return cls(kv, queries, rows[source[0], 0], at[source], [part], source)

    @classmethod
    def of_step(cls, kv: KVCache, slots: Tensor, lengths: Tensor, part: Part) -> ForwardPass:
        """Return the pass that adds one token to each of ``slots``; ``lengths`` count it.

        Both are int64 tensors, and ``part`` is the same. Where that holds tensors alone, no
        value is read on the host, so the pass can be captured in a CUDA graph.
        """
        return cls(kv, 1, slots[:, None], lengths[:, None] - 1, [part])

    @classmethod
    def of_chunks(
        cls, kv: KVCache, chunks: Sequence[Chunk], device: torch.device, grouped: bool
    ) -> ForwardPass:
        """Return the pass of a packed batch: one row, the tokens of all chunks in turn.

        See :func:`~pyvattn.integrations.transformers.parts.parts_of` for ``grouped``.
        """
        slots = torch.cat([torch.full((chunk.count,), chunk.slot) for chunk in chunks])
        positions = torch.cat([torch.arange(chunk.first, chunk.end) for chunk in chunks])
        return cls(
            kv,
            len(slots),
            upload(slots, device)[None],
            upload(positions, device)[None],
            parts_of(chunks, device, grouped),
        )

    def store(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Write ``[batch, kv_heads, queries, head_dim]`` of ``layer`` into the slots."""
        if key.requires_grad:
            raise UnsupportedError(
                "the cache does not carry gradients: call the model under torch.no_grad()"
            )
        self.layer = layer
        k, v = key.transpose(1, 2), value.transpose(1, 2)
        if self.source is not None:
            k, v = k[self.source], v[self.source]
        append(self.kv, layer, self.slots, self.positions, k, v)

    def attend(self, query: Tensor, scale: float | None) -> Tensor:
        """Attend ``[batch, q_heads, queries, head_dim]`` to the layer stored last.

        The result is ``[batch, queries, q_heads, head_dim]``, as the library has it.
        """
        q = query.transpose(1, 2)
        if self.parts[0].whole:
            return self._attend(self.parts[0], q, scale)
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        for part in self.parts:
            part.put(self._attend(part, part.take(q), scale), out)
        return out

    def _attend(self, part: Part, q: Tensor, scale: float | None) -> Tensor:
        slots, lengths = part.slots, part.lengths
        return attend(q, self.kv, self.layer, slots, lengths, causal=True, scale=scale)
