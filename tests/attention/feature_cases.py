# SPDX-License-Identifier: Apache-2.0
"""Random windows, starts, softcaps, slopes, sinks and packed queries, and what they must give.

As in attention_cases, the expected values come from what was kept, in float64, head by head
and query by query, with nothing of pyvattn.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import torch
from attention_cases import Case

from pyvattn.attention import Feature


@dataclass
class Asked:
    """What one call of attend() is given beside the batch."""

    causal: bool
    features: frozenset[Feature]
    seed: int
    scale: float = 0.3
    options: dict[str, Any] = field(default_factory=dict)

    def draw(self, case: Case, longest: int) -> torch.Tensor:
        """Choose values for the features, and return queries of the shape that they need."""
        rng = random.Random(self.seed)
        rows = len(case.slots)
        if Feature.WINDOW in self.features:
            sides = [-1, 0, 1, rng.randint(2, longest)]
            left, right = rng.choice(sides), rng.choice(sides)
            self.options["window_size"] = (left, right) if (left, right) != (-1, -1) else (3, -1)
        if Feature.STARTS in self.features:
            # some of all their tokens, some of none
            self.options["starts"] = [rng.choice([0, rng.randint(0, n), n]) for n in case.lengths]
        if Feature.SOFTCAP in self.features:
            self.options["softcap"] = rng.uniform(0.5, 3.0)
        if Feature.ALIBI in self.features:
            shape = (rows, case.q_heads) if rng.random() < 0.5 else (case.q_heads,)
            self.options["alibi_slopes"] = torch.rand(shape, device=case.device)
        if Feature.LSE in self.features and rng.random() < 0.7:
            self.options["sinks"] = torch.randn(case.q_heads, device=case.device)
        if Feature.PACKED not in self.features:
            return case.queries(rng.choice([1, 4, longest]))
        counts = [rng.choice([0, 1, rng.randint(1, longest)]) for _ in range(rows)]
        self.options["query_counts"] = counts
        return case.queries(longest).flatten(0, 1)[: sum(counts)]


def expected(case: Case, q: torch.Tensor, asked: Asked) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the result and the log-sum-exp, ``[batch, q_heads, queries]`` or packed."""
    out = torch.zeros((*q.shape[:-1], case.cache.spec.v_head_dim), dtype=torch.float64)
    lse = torch.full(q.shape[:-1], -torch.inf, dtype=torch.float64)
    if not (counts := asked.options.get("query_counts")):
        places = [(row, at) for row in range(q.shape[0]) for at in range(q.shape[1])]
        of = [(row, at, q.shape[1], (row, at)) for row, at in places]
    else:
        of, begin = [], 0
        for row, count in enumerate(counts):
            of += [(row, at, count, (begin + at,)) for at in range(count)]
            begin += count
    for row, at, count, place in of:
        position = case.lengths[row] - count + at
        for head in range(case.q_heads):
            query = q[place][head].double().cpu()
            result = _attend(case, asked, row, head, position, query)
            out[place][head], lse[place][head] = result
    return out, lse.transpose(-1, -2)


def _attend(
    case: Case, asked: Asked, row: int, head: int, position: int, query: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    options = asked.options
    left, right = options.get("window_size", (-1, -1))
    start = options["starts"][row] if "starts" in options else 0
    first = start if left < 0 else max(start, position - left)
    last = case.lengths[row] - 1
    if right >= 0:
        last = min(last, position + right)
    if asked.causal:
        last = min(last, position)
    if last < first:
        return torch.zeros(case.cache.spec.v_head_dim), torch.tensor(-torch.inf)
    shared = head * case.cache.spec.kv_heads // case.q_heads
    k, v = (kept[first : last + 1, shared].double() for kept in case.kept[row])
    scores = (k @ query) * asked.scale
    if cap := options.get("softcap"):
        scores = cap * (scores / cap).tanh()
    if (slopes := options.get("alibi_slopes")) is not None:
        slope = (slopes[row] if slopes.dim() == 2 else slopes)[head].double().cpu()
        scores = scores - slope * (position - torch.arange(first, last + 1)).abs()
    weights = scores.exp()
    total = weights.sum()
    sink = options["sinks"][head].double().cpu().exp() if "sinks" in options else 0.0
    return weights @ v / (total + sink), total.log()
