# SPDX-License-Identifier: Apache-2.0
"""What a scheduler knows of preempted requests in host memory, and what it has workers do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
    """Of one step, which runs so many ``tokens``: requests to save, with their tokens, to load,
    and to let go of.

    Of those that it preempts ``refused`` found no room, and to compute ``cheaper`` of them anew
    takes less than to copy them.
    """

    tokens: int = 0
    saves: list[tuple[str, int]] = field(default_factory=list)
    loads: list[Load] = field(default_factory=list)
    drops: list[str] = field(default_factory=list)
    refused: int = 0
    cheaper: int = 0


class SwapBooks:
    """Which requests are in host memory, which has room for ``blocks``, with how many tokens each.

    For one thread, the scheduler's. Workers carry out the steps in their order, so a request that
    leaves in one may come back in the next, whatever they have done by then. Waiting for word of
    that would let requests that came later have the memory which was made free.
    """

    def __init__(self, block_size: int, blocks: int) -> None:
        self._block_size = block_size
        self._room = blocks
        # With KV, of those in the last step, once it has run.
        self._tokens: dict[str, int] = {}
        self._kept: dict[str, int] = {}
        # Of the request that vLLM asked for last.
        self._computed = 0
        self._loads: list[Load] = []
        self._drops: list[str] = []

    def matched(self, request_id: str, tokens: int, computed: int) -> int:
        """Return how many tokens of a request come back beyond the first ``computed``.

        It has ``tokens`` in all, of which the last is always run.
        """
        self._computed = computed
        end = min(self._kept.get(request_id, 0), tokens - 1)
        return max(0, end - computed)

    def allocated(self, request_id: str, blocks: Sequence[int], count: int) -> None:
        """Have ``count`` tokens loaded, of the request that was asked for last: it runs."""
        if not self._forget(request_id):
            return
        if not count:
            self._drops.append(request_id)
            return
        first, end = self._computed, self._computed + count
        lacking = blocks[first // self._block_size : self._blocks(end)]
        self._loads.append(Load(request_id, first, end, tuple(lacking)))

    def end(self, request_id: str) -> None:
        """The request has ended."""
        self._tokens.pop(request_id, None)
        self.lost([request_id])

    def lost(self, request_ids: Iterable[str]) -> None:
        """Requests are of no use: they have ended, or a worker could not save its part."""
        self._drops += [each for each in request_ids if self._forget(each)]

    def reset(self) -> None:
        """Let go of everything, also of what the next step would save."""
        self.lost(list(self._kept))
        self._tokens.clear()

    def orders(self, step: Any, *, copying_is_cheaper: bool = True) -> Orders:
        """Return what workers do in a step, which is one of vLLM's ``SchedulerOutput``."""
        orders = Orders(step.total_num_scheduled_tokens, loads=self._loads, drops=self._drops)
        self._loads, self._drops = [], []
        for request_id in sorted(step.preempted_req_ids or ()):
            tokens = self._tokens.pop(request_id, 0)
            # Where vLLM drops all KV, it preempts what runs in the same step again.
            if not tokens or request_id in step.num_scheduled_tokens:
                continue
            if not copying_is_cheaper:
                orders.cheaper += 1
            elif self._blocks(tokens) > self._room:
                orders.refused += 1
            else:
                orders.saves.append((request_id, tokens))
                self._kept[request_id] = tokens
                self._room -= self._blocks(tokens)
        # One that a step leaves out may lose its row in runner V1.
        self._tokens = {
            request_id: computed + step.num_scheduled_tokens[request_id]
            for request_id, computed in _computed(step)
        }
        return orders

    def _forget(self, request_id: str) -> bool:
        """Return whether the request was in host memory, whose room is another's from now on."""
        tokens = self._kept.pop(request_id, None)
        if tokens is None:
            return False
        self._room += self._blocks(tokens)
        return True

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self._block_size)


def _computed(step: Any) -> Iterable[tuple[str, int]]:
    """Return how many tokens each request of a step has before it."""
    for new in step.scheduled_new_reqs:
        yield new.req_id, new.num_computed_tokens
    cached = step.scheduled_cached_reqs
    yield from zip(cached.req_ids, cached.num_computed_tokens, strict=True)
