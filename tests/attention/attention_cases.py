# SPDX-License-Identifier: Apache-2.0
"""A cache full of random requests, and what attention over them must give.

The expected values come from the K and V as they were before they went into the
cache, in float64 and with nothing of pyvattn: a wrong stride, slot or mask shows.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from pyvattn import CacheSpec, KVCache
from pyvattn.attention import append
from pyvattn.cache import Slot


@dataclass
class Case:
    """Requests of random lengths in slots of random order."""

    cache: KVCache
    q_heads: int
    seed: int
    device: str = "cpu"
    layer: int = 1
    live: list[Slot] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    kept: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = torch.Generator().manual_seed(self.seed)

    def fill(self, batch: int, longest: int) -> None:
        """Put ``batch`` requests into the cache, NaN behind the guard of each."""
        spec = self.cache.spec
        for _ in range(batch):
            length = int(torch.randint(1, longest + 1, (1,), generator=self.random))
            slot = self.cache.acquire(length)
            self.cache.step({slot: spec.max_tokens})
            for tensor in self.cache.layer(self.layer):
                tensor[slot.index, length + spec.guard_tokens :] = float("nan")
            self.cache.step({slot: length})
            k, v = (self._tokens(length, width) for width in (spec.head_dim, spec.v_head_dim))
            where = torch.arange(length, device=self.device)
            row = torch.full_like(where, slot.index)
            append(self.cache, self.layer, row, where, k.to(self.device), v.to(self.device))
            self.live.append(slot)
            self.slots.append(slot.index)
            self.lengths.append(length)
            self.kept.append((k.double(), v.double()))
        order = torch.randperm(batch, generator=self.random).tolist()
        for name in ("slots", "lengths", "kept"):
            setattr(self, name, [getattr(self, name)[i] for i in order])

    def empty(self, row: int) -> None:
        """Take the tokens of a row as not there; its slot keeps them."""
        self.lengths[row] = 0
        self.kept[row] = tuple(tensor[:0] for tensor in self.kept[row])

    def queries(self, count: int) -> torch.Tensor:
        """Return ``[batch, count, q_heads, head_dim]`` of the cache's dtype."""
        spec = self.cache.spec
        shape = (len(self.slots), count, self.q_heads, spec.head_dim)
        values = torch.randn(shape, generator=self.random)
        return values.to(getattr(torch, spec.dtype)).to(self.device)

    def expected(self, q: torch.Tensor, causal: bool = True) -> torch.Tensor:
        """Attend in float64 from the tokens that were kept, on the device of ``q``."""
        width = self.cache.spec.v_head_dim
        out = torch.zeros((*q.shape[:-1], width), dtype=torch.float64, device=q.device)
        for row, (kept, length) in enumerate(zip(self.kept, self.lengths, strict=True)):
            k, v = (tensor.to(q.device) for tensor in kept)
            if not length:
                continue
            count = min(q.shape[1], length) if causal else q.shape[1]
            for head in range(self.q_heads):
                shared = head * k.shape[1] // self.q_heads
                queries = q[row, -count:, head].double()
                scores = queries @ k[:, shared].T * q.shape[-1] ** -0.5
                if causal:
                    seen = torch.ones_like(scores, dtype=torch.bool).tril(length - count)
                    scores = scores.masked_fill(~seen, -torch.inf)
                out[row, -count:, head] = scores.softmax(-1) @ v[:, shared]
        return out

    def _tokens(self, count: int, width: int) -> torch.Tensor:
        spec = self.cache.spec
        values = torch.randn(count, spec.kv_heads, width, generator=self.random)
        return values.to(getattr(torch, spec.dtype))


def open_case(
    layout: str,
    kv_heads: int,
    q_heads: int,
    head_dim: int,
    *,
    dtype: str = "float32",
    seed: int = 0,
    device: str = "cpu",
    driver: str = "auto",
    max_slots: int = 5,
    max_tokens: int = 300,
    guard_tokens: int = 192,
    v_head_dim: int = 0,
) -> Case:
    """Open a cache of two layers and return its case, empty."""
    spec = CacheSpec(
        layers=2,
        kv_heads=kv_heads,
        head_dim=head_dim,
        dtype=dtype,
        max_slots=max_slots,
        max_tokens=max_tokens,
        guard_tokens=guard_tokens,
        v_head_dim=v_head_dim,
    )
    cache = KVCache(spec, device=device, driver=driver, layout=layout, memory="2GiB")
    return Case(cache, q_heads, seed, device)
