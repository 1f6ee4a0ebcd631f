# SPDX-License-Identifier: Apache-2.0
"""A serving engine of your own: continuous batching, chunked prefill, forks, cancel, streaming.

Every request owns a slot: one row of plain K and V tensors. A step says how long the rows
are to be, computes one packed batch of prompts' chunks and decodes, and hands out tokens.

    python examples/engine.py
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from pyvattn import CacheSpec, KVCache, OutOfMemory, OutOfSlots
from pyvattn.attention import append, attend

SPEC = CacheSpec(layers=2, kv_heads=2, head_dim=16, dtype="float32", max_slots=8, max_tokens=1024)


class TinyModel(nn.Module):
    """A decoder with random weights, which leaves K and V to ``attention(layer, q, k, v)``."""

    def __init__(self, vocabulary: int = 97, heads: int = 4) -> None:
        super().__init__()
        width, kv = heads * SPEC.head_dim, SPEC.kv_heads * SPEC.head_dim
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(SPEC.max_tokens, width)
        self.qkv = nn.ModuleList(nn.Linear(width, width + 2 * kv) for _ in range(SPEC.layers))
        self.out = nn.ModuleList(nn.Linear(width, width) for _ in range(SPEC.layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary)
        self.sizes = [width, kv, kv]

    def forward(self, tokens, positions, attention):
        """Return logits ``[total, vocabulary]`` for ``[total]`` tokens at ``[total]`` positions."""
        x = self.tokens(tokens) + self.places(positions)
        for layer, (qkv, out) in enumerate(zip(self.qkv, self.out, strict=True)):
            parts = qkv(self.norm(x)).split(self.sizes, dim=-1)
            q, k, v = (part.unflatten(-1, (-1, SPEC.head_dim)) for part in parts)
            x = x + out(attention(layer, q, k, v).flatten(-2))
        return self.head(self.norm(x))


@dataclass(eq=False)
class Request:
    """One request. ``tokens`` is its prompt and then what was generated."""

    tokens: list[int]
    new_tokens: int  # still to be generated
    on_token: Callable[[int], None]
    slot: object = None  # of the cache, while it runs
    computed: int = 0  # tokens whose K and V lie in the slot


class Engine:
    """Serves requests from one cache, at most ``step_tokens`` tokens a step."""

    def __init__(self, model: TinyModel, cache: KVCache, step_tokens: int = 32) -> None:
        self.model, self.cache, self.step_tokens = model, cache, step_tokens
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []  # in the order in which they were admitted

    def submit(self, prompt, new_tokens, on_token=lambda token: None) -> Request:
        """Queue a request; ``on_token`` gets each new token as soon as it is known."""
        if not prompt or new_tokens < 1 or len(prompt) + new_tokens > self.cache.spec.max_tokens:
            raise ValueError(f"{len(prompt)} + {new_tokens} tokens do not fit into a slot")
        self.waiting.append(Request(list(prompt), new_tokens, on_token))
        return self.waiting[-1]

    def fork(self, request: Request, more, new_tokens, on_token=lambda token: None) -> Request:
        """Go on from where ``request`` is with other tokens; what it has computed is shared."""
        twin = self.submit([*request.tokens, *more], new_tokens, on_token)
        if request.slot is not None:
            try:
                twin.slot = self.cache.fork(request.slot, request.computed)
            except (OutOfMemory, OutOfSlots):
                return twin  # it waits, and computes everything anew
            twin.computed = request.computed
            self.waiting.remove(twin)
            self.running.append(twin)
        return twin

    def cancel(self, request: Request) -> None:
        """Take a request out, whatever it is doing; also from within ``on_token``."""
        request.new_tokens = 0
        if request.slot is not None:
            self._leave(request)
        elif request in self.waiting:
            self.waiting.remove(request)

    def step(self) -> bool:
        """Compute one batch; False where nothing is left to do."""
        self._admit()
        counts = self._back(self._plan())
        if counts:
            # The next step's pages are mapped while this one computes.
            self.cache.prefetch(
                {r.slot: r.computed + n + 1 for r, n in counts.items() if r.new_tokens > 1}
            )
            for request, token in self._compute(counts):
                self._deliver(request, token)
        return bool(self.running or self.waiting)

    def _admit(self) -> None:
        """Start what fits. A request for which even an empty cache is too small raises."""
        while self.waiting:
            request = self.waiting[0]
            if self.running and not self.cache.can_admit(len(request.tokens)):
                return
            request.slot = self.cache.admit(len(request.tokens))
            self.running.append(self.waiting.popleft())

    def _plan(self) -> dict[Request, int]:
        """Decide how many tokens of each request to compute: decodes first, then prompts."""
        counts, left = {}, self.step_tokens
        for request in sorted(self.running, key=lambda r: len(r.tokens) - r.computed > 1):
            counts[request] = min(left, len(request.tokens) - request.computed)
            left -= counts[request]
        return {request: count for request, count in counts.items() if count}

    def _back(self, counts: dict[Request, int]) -> dict[Request, int]:
        """Have memory for the step; where it is short, the newest request starts over later."""
        while True:
            try:
                self.cache.step({r.slot: r.computed + n for r, n in counts.items()})
                return counts
            except OutOfMemory:
                if len(self.running) == 1:
                    raise  # it is too long for this cache
                newest = self.running[-1]
                counts.pop(newest, None)
                self._leave(newest)
                self.waiting.appendleft(newest)

    @torch.no_grad()
    def _compute(self, counts: dict[Request, int]) -> list[tuple[Request, int]]:
        """Compute one packed batch; return the next token of each request that got to one."""
        rows, taken = [r.slot.index for r in counts], list(counts.values())
        spans = [range(r.computed, r.computed + n) for r, n in counts.items()]
        tokens = [r.tokens[at] for r, span in zip(counts, spans, strict=True) for at in span]
        positions = torch.tensor([at for span in spans for at in span])
        slots = torch.tensor(rows).repeat_interleave(torch.tensor(taken))

        def attention(layer, q, k, v):
            append(self.cache, layer, slots, positions, k, v)
            ends = [span.stop for span in spans]
            return attend(q, self.cache, layer, rows, ends, query_counts=taken)

        logits = self.model(torch.tensor(tokens), positions, attention)
        last = torch.tensor(taken).cumsum(0) - 1
        found = zip(counts, spans, logits[last].argmax(-1).tolist(), strict=True)
        for request, span in zip(counts, spans, strict=True):
            request.computed = span.stop
        return [(r, token) for r, span, token in found if span.stop == len(r.tokens)]

    def _deliver(self, request: Request, token: int) -> None:
        if request.slot is None:
            return  # cancelled by what was told before
        request.tokens.append(token)
        request.new_tokens -= 1
        request.on_token(token)
        if request.new_tokens < 1 and request.slot is not None:
            self._leave(request)

    def _leave(self, request: Request) -> None:
        self.running.remove(request)
        self.cache.release(request.slot)
        request.slot, request.computed = None, 0


if __name__ == "__main__":
    torch.manual_seed(0)
    with KVCache(SPEC, device="cpu", memory="64MiB") as cache:
        engine = Engine(TinyModel(), cache)
        first = engine.submit(range(50), 12, lambda token: print("first", token))
        while len(first.tokens) < 54:  # two steps of its prompt, then four tokens
            engine.step()
        engine.fork(first, [7, 8, 9], 6, lambda token: print("  fork", token))
        unwanted = engine.submit([1, 2, 3], 500)
        engine.step()
        engine.cancel(unwanted)
        while engine.step():
            pass
        print(f"{cache.stats().slots_live} slots live, {cache.stats().map_calls} map calls")
