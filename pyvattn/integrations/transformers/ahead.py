# SPDX-License-Identifier: Apache-2.0
"""Rows for requests that wait, mapped in the background while others run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from pyvattn.errors import OutOfSlots

if TYPE_CHECKING:
    from pyvattn.cache import KVCache, Slot
    from pyvattn.integrations.transformers.request import Request


class RowsAhead:
    """Slots that are held while the mapper thread puts pages under them.

    A slot that is let go without a token keeps its pages, clean, and an admission takes the free
    slot whose pages fit best: it finds them mapped, and asks the driver for nothing. Only slots
    and memory that are free are taken, and both go back at once where they are needed.
    """

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache
        self._held: list[Slot] = []
        self._wanted: Sequence[Request] = ()

    def want(self, requests: Sequence[Request], shares: Callable[[Request], bool]) -> None:
        """Have rows mapped for the first of ``requests``, as many as there is room for.

        One that ``shares`` the pages of others gets none. Nothing is done where they are those of
        the last call and nothing was let go since.
        """
        if requests == self._wanted:
            return
        self.let_go()
        self._wanted = requests
        stats = self._cache.stats()
        slots = self._cache.spec.max_slots - stats.slots_live
        # What released slots keep is reused where it lies, so it counts as room.
        pages = stats.memory_limit // stats.page_size - stats.pages_allocated
        pages += stats.pages_free + stats.pages_retained
        asked: dict[Slot, int] = {}
        for request in requests:
            length = request.length
            needed = self._cache._pages_for(length)
            # First what costs least to know: where nothing fits, prompts are not hashed each step.
            if len(asked) == slots or needed > pages:
                break
            if shares(request):
                continue
            pages -= needed
            try:
                slot = self._cache.acquire(length)
            except OutOfSlots:  # another thread was faster
                break
            asked[slot] = length
            self._held.append(slot)
        if asked:
            self._cache.prefetch(asked)

    def let_go(self) -> bool:
        """Release every row that is held; returns whether there was any."""
        held, self._wanted = bool(self._held), ()
        while self._held:
            self._cache.release(self._held.pop())
        return held


def first_prompts(requests: Iterable[Request], tokens: int) -> list[Request]:
    """Return those that a step which runs ``tokens`` of prompts could begin, were there room."""
    found = []
    for request in requests:
        if tokens <= 0:
            break
        tokens -= request.length
        found.append(request)
    return found
