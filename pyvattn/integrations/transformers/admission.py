# SPDX-License-Identifier: Apache-2.0
"""Slots for requests: what of their prompts is there already, and whether every rank has room."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pyvattn.errors import OutOfMemory

if TYPE_CHECKING:
    from pyvattn.cache import KVCache, Slot
    from pyvattn.integrations.transformers.ranks import Ranks
    from pyvattn.integrations.transformers.request import Request
    from pyvattn.prefix import PrefixIndex


class Admission:
    """Gives requests slots of a cache, takes them back, and shares what prompts have in common.

    ``prefixes`` finds that; without it, and for requests that are not to share, nothing is shared.
    """

    def __init__(self, cache: KVCache, prefixes: PrefixIndex | None, ranks: Ranks) -> None:
        self._cache, self._prefixes, self._ranks = cache, prefixes, ranks

    def slot_for(self, request: Request, *, alone: bool) -> tuple[Slot, int] | None:
        """Return a slot with all tokens of a request backed, and how many are there already.

        Every rank finds one, with as many tokens there. Nothing where others leave no room for
        it; one that is ``alone`` is tried all the same. Raises
        :class:`~pyvattn.errors.OutOfMemory` where it does not fit.
        """
        found, failure = None, None
        try:
            found = self._own_slot_for(request, alone)
        except OutOfMemory as error:
            failure = error
        least, most = self._ranks.range(-1 if found is None else found[1])
        if least == most and failure is None:
            return found
        if found is not None:
            self.release(request, found[0])
        if least < 0:
            raise failure or OutOfMemory("another rank has no room for the request")
        # Prompts that one rank still has and another had to give up.
        request.reuse = False
        return self.slot_for(request, alone=alone)

    def shares(self, request: Request) -> bool:
        """Whether others have the beginning of its prompt, so that it needs less than a row."""
        index = self._index_of(request)
        return index is not None and index.hit_of(request.tokens, salt=request.salt) > 0

    def any_begins_like(self, request: Request, others: Sequence[Request]) -> bool:
        """Whether a prompt has its first block in common with one of others, and may share it."""
        index = self._index_of(request)
        if index is None or len(request.tokens) <= index.block_tokens:
            return False
        first = request.tokens[: index.block_tokens]
        return any(
            each.reuse and each.salt == request.salt and each.tokens[: len(first)] == first
            for each in others
        )

    def publish(self, request: Request, slot: Slot, tokens: int) -> None:
        """Let others share the first ``tokens`` tokens of a request, which its slot has or gets."""
        index = self._index_of(request)
        if index is not None:
            index.publish(slot, request.tokens[:tokens])

    def pause(self, request: Request, slot: Slot, end: int) -> int:
        """Return how far to compute a request that is to be computed to ``end``.

        No further than where its states are to be kept.
        """
        index = self._index_of(request)
        return end if index is None else min(end, index.next_snapshot(slot, request.cached) or end)

    def forget(self, request: Request, slot: Slot) -> bool:
        """Let nobody share what was not computed; whether anybody could."""
        index = self._index_of(request)
        if index is not None:
            index.forget(slot)
        return index is not None

    def release(self, request: Request, slot: Slot, after: object = None) -> None:
        """Give a request's slot back."""
        (self._index_of(request) or self._cache).release(slot, after)

    def _own_slot_for(self, request: Request, alone: bool) -> tuple[Slot, int] | None:
        """:meth:`slot_for` on this rank."""
        tokens, index = request.tokens, self._index_of(request)
        if index is None:
            if not alone and not self._cache.can_admit(len(tokens)):
                return None
            return self._cache.admit(len(tokens)), 0
        if not alone and not index.can_admit(tokens, salt=request.salt):
            return None
        return index.admit(tokens, salt=request.salt)

    def _index_of(self, request: Request) -> PrefixIndex | None:
        return self._prefixes if request.reuse else None
