# SPDX-License-Identifier: Apache-2.0
"""What a scheduler knows of preempted requests in host memory, and what it has workers do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Load", "Orders", "SwapBooks"]


@dataclass(frozen=True)
class Load:
    """The tokens ``[first, end)`` of a request come back, to these blocks of vLLM's."""

    request_id: str
    first: int
    end: int
    blocks: tuple[int, ...]


@dataclass
class Orders:
    """Of one step: requests to save, with their tokens, to load, and to let go of."""

    saves: list[tuple[str, int]] = field(default_factory=list)
    loads: list[Load] = field(default_factory=list)
    drops: list[str] = field(default_factory=list)


class SwapBooks:
    """Which requests are in host memory, with how many tokens each.

    For one thread, the scheduler's. A request that leaves is *asked for* until the workers have
    said whether they have it: with async scheduling that takes longer than a step.
    """

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        # With KV, once the steps that were scheduled have run.
        self._tokens: dict[str, int] = {}
        self._asked: dict[str, int] = {}
        self._kept: dict[str, int] = {}
        # Of the request that vLLM asked for last.
        self._computed = 0
        self._loads: list[Load] = []
        self._drops: list[str] = []

    def matched(self, request_id: str, tokens: int, computed: int) -> int | None:
        """Return how many tokens of a request come back beyond the first ``computed``.

        It has ``tokens`` in all, of which the last is always run. None: that is not known yet.
        """
        if request_id in self._asked:
            return None
        self._computed = computed
        end = min(self._kept.get(request_id, 0), tokens - 1)
        return max(0, end - computed)

    def allocated(self, request_id: str, blocks: Sequence[int], count: int) -> None:
        """Have ``count`` tokens loaded, of the request that was asked for last: it runs."""
        if self._kept.pop(request_id, None) is None:
            return
        if not count:
            self._drops.append(request_id)
            return
        first, end = self._computed, self._computed + count
        lacking = blocks[first // self._block_size : -(-end // self._block_size)]
        self._loads.append(Load(request_id, first, end, tuple(lacking)))

    def end(self, request_id: str) -> None:
        """The request has ended."""
        self._tokens.pop(request_id, None)
        if self._asked.pop(request_id, None) or self._kept.pop(request_id, None):
            self._drops.append(request_id)

    def reset(self) -> None:
        """Let go of everything, also of what the next step would save."""
        self._drops += [*self._asked, *self._kept]
        for books in (self._tokens, self._asked, self._kept):
            books.clear()

    def answered(self, answers: Mapping[str, bool]) -> None:
        """Workers said whether they saved requests; without one's part none is of use."""
        for request_id, is_saved in answers.items():
            tokens = self._asked.pop(request_id, None)
            if tokens is None:
                continue
            if is_saved:
                self._kept[request_id] = tokens
            else:
                self._drops.append(request_id)

    def orders(self, step: Any) -> Orders:
        """Return what workers do in a step, which is one of vLLM's ``SchedulerOutput``."""
        orders = Orders([], self._loads, self._drops)
        self._loads, self._drops = [], []
        for request_id in sorted(step.preempted_req_ids or ()):
            tokens = self._tokens.pop(request_id, 0)
            # Where vLLM drops all KV, it preempts what runs in the same step again.
            if tokens and request_id not in step.num_scheduled_tokens:
                orders.saves.append((request_id, tokens))
                self._asked[request_id] = tokens
        for request_id, computed in _computed(step):
            self._tokens[request_id] = computed + step.num_scheduled_tokens[request_id]
        return orders


def _computed(step: Any) -> Iterable[tuple[str, int]]:
    """Return how many tokens each request of a step has before it."""
    for new in step.scheduled_new_reqs:
        yield new.req_id, new.num_computed_tokens
    cached = step.scheduled_cached_reqs
    yield from zip(cached.req_ids, cached.num_computed_tokens, strict=True)
