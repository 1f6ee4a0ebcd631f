# SPDX-License-Identifier: Apache-2.0
"""A decoder of the shape of Llama-3-8B with random weights, for timing decode steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyvattn.bench.attention import HEAD_DIM, KV_HEADS, Q_HEADS
from pyvattn.cache import KVCache
from pyvattn.gpu_timing import in_graphs

if TYPE_CHECKING:
    from pyvattn.attention.kernel import Kernel

_HIDDEN, _FEED, _VOCABULARY = 4096, 14336, 128256


class Weights:
    """16 GB of random weights at 32 layers, shared by all decoders of a run."""

    def __init__(self, torch: Any, layers: int, device: str) -> None:
        def matrix(rows: int, columns: int) -> Any:
            return torch.randn(rows, columns, dtype=torch.bfloat16, device=device) * rows**-0.5

        heads = (Q_HEADS + 2 * KV_HEADS) * HEAD_DIM
        self.embedding = matrix(_VOCABULARY, _HIDDEN) * _VOCABULARY**0.5
        self.head = matrix(_HIDDEN, _VOCABULARY)
        self.layers = [
            (
                matrix(_HIDDEN, heads),
                matrix(Q_HEADS * HEAD_DIM, _HIDDEN),
                matrix(_HIDDEN, 2 * _FEED),
                matrix(_FEED, _HIDDEN),
            )
            for _ in range(layers)
        ]


class Decoder:
    """One decode step over a cache; addresses never change, so it is captured once."""

    def __init__(self, torch: Any, weights: Weights, cache: KVCache, batch: int) -> None:
        self._torch, self._weights, self._cache = torch, weights, cache
        device = weights.head.device
        self.tokens = torch.zeros(batch, dtype=torch.int64, device=device)
        self.slots = torch.zeros(batch, dtype=torch.int32, device=device)
        self.lengths = torch.ones(batch, dtype=torch.int32, device=device)
        self._replay: Callable[[], object] | None = None

    @property
    def kernel(self) -> Kernel:
        """The attention kernel that takes the step's problem."""
        from pyvattn.attention.problem import Problem
        from pyvattn.attention.registry import choose

        k, v = self._cache.layer(0)
        q = self._torch.empty(1, 1, Q_HEADS, HEAD_DIM, dtype=k.dtype, device=k.device)
        return choose("auto", Problem(q, k, v, self.slots[:1], self.lengths[:1], True, 1.0))

    @property
    def description(self) -> str:
        """Say how a step runs: the kernel, and whether it was captured."""
        how = "in a CUDA graph" if self._replay else "not captured: it reads lengths on the host"
        return f"{self.kernel.name} {how}"

    def capture(self) -> None:
        """Capture a step as a CUDA graph, if the kernel can be: the tokens must be backed."""
        if not self.kernel.capturable:
            return
        replays = in_graphs({"step": self._forward})
        self._replay = replays["step"] if replays else None

    def launch(self) -> None:
        """Start a step: it writes a token for each row and replaces ``tokens``."""
        (self._replay or self._forward)()

    def _forward(self) -> None:
        from pyvattn.attention import append, attend

        torch, batch = self._torch, self.tokens.shape[0]
        slots = self.slots.long()[:, None]
        positions = (self.lengths - 1).long()[:, None]
        x = self._weights.embedding[self.tokens]
        for layer, (qkv, out, feed, back) in enumerate(self._weights.layers):
            heads = (_norm(torch, x) @ qkv).view(batch, 1, -1, HEAD_DIM)
            q, k, v = heads.split([Q_HEADS, KV_HEADS, KV_HEADS], dim=2)
            append(self._cache, layer, slots, positions, k, v)
            attended = attend(q.contiguous(), self._cache, layer, self.slots, self.lengths)
            x = x + attended.view(batch, -1) @ out
            gate, up = (_norm(torch, x) @ feed).chunk(2, dim=-1)
            x = x + (torch.nn.functional.silu(gate) * up) @ back
        self.tokens.copy_((_norm(torch, x) @ self._weights.head).argmax(dim=-1))


def _norm(torch: Any, x: Any) -> Any:
    return torch.nn.functional.rms_norm(x, x.shape[-1:])
