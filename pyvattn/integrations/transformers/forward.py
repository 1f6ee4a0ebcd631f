"""What one forward pass of the model reads and writes in the cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyvattn.attention import append, attend
from pyvattn.attention.problem import Indices, KnownIndices
from pyvattn.errors import UnsupportedError

if TYPE_CHECKING:
    from pyvattn.cache import KVCache


@dataclass(frozen=True)
class Part:
    """Rows of the model's batch that attend together.

    ``span`` are its tokens in a packed batch (one row of tokens of several slots);
    ``None`` is the whole batch.
    """

    slots: Indices
    lengths: Indices
    span: slice | None = None


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
        row_slots, row_lengths = upload(slots, device), upload(lengths, device)
        part = Part(KnownIndices.of(slots, row_slots), KnownIndices.of(lengths, row_lengths))
        at = row_lengths[:, None] + torch.arange(-queries, 0, device=device)
        if all(count == queries for count in counts):
            return cls(kv, queries, row_slots[:, None], at, [part])
        # Found on the host: what nonzero() finds on a device has to be waited for.
        first = queries - torch.tensor(counts)
        rows, columns = (torch.arange(queries) >= first[:, None]).nonzero(as_tuple=True)
        source = upload(rows, device), upload(columns, device)
        return cls(kv, queries, row_slots[source[0]], at[source], [part], source)

    @classmethod
    def of_step(cls, kv: KVCache, slots: Tensor, lengths: Tensor, part: Part) -> ForwardPass:
        """Return the pass that adds one token to each of ``slots``; ``lengths`` count it.

        Both are int64 tensors, and ``part`` is the same. Where that holds tensors alone, no
        value is read on the host, so the pass can be captured in a CUDA graph.
        """
        return cls(kv, 1, slots[:, None], lengths[:, None] - 1, [part])

    @classmethod
    def of_chunks(
        cls, kv: KVCache, chunks: Sequence[tuple[int, int, int]], device: torch.device
    ) -> ForwardPass:
        """Return the pass of a packed batch: one row, the tokens of several slots in turn.

        A chunk is ``(slot, first, end)``: the tokens that it adds to the slot.
        """
        counts = [end - first for _, first, end in chunks]
        ends = upload([end for _, _, end in chunks], device)
        slots = upload([slot for slot, _, _ in chunks], device)
        parts, offset = [], 0
        for index, (slot, first, end) in enumerate(chunks):
            here = slice(index, index + 1)
            parts.append(
                Part(
                    KnownIndices.of([slot], slots[here]),
                    KnownIndices.of([end], ends[here]),
                    slice(offset, offset + end - first),
                )
            )
            offset += end - first
        token_slots = upload([s for s, first, end in chunks for _ in range(first, end)], device)
        positions = upload([at for _, first, end in chunks for at in range(first, end)], device)
        return cls(kv, sum(counts), token_slots[None], positions[None], parts)

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
        attended = [
            attend(
                q if part.span is None else q[:, part.span],
                self.kv,
                self.layer,
                part.slots,
                part.lengths,
                causal=True,
                scale=scale,
            )
            for part in self.parts
        ]
        return attended[0] if len(attended) == 1 else torch.cat(attended, dim=1)


def upload(values: Sequence[int] | Tensor, device: torch.device) -> Tensor:
    """Return ``values`` as an int64 tensor on ``device``, without waiting for the device."""
    tensor = torch.as_tensor(values, dtype=torch.long)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
