# SPDX-License-Identifier: Apache-2.0
"""What an engine does between two steps for the processes that share its memory."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from pyvattn.cache import KVCache
from pyvattn.errors import Error, LedgerLost
from pyvattn.prefix import PrefixIndex

_ROUND_S = 0.05


class Neighbours:
    """Those with whom a cache shares memory; nobody, where its budget is its own.

    A ledger that is lost ends the sharing, and nothing else: what is held stays.
    """

    def __init__(self, cache: KVCache, prefixes: PrefixIndex | None) -> None:
        self._cache = cache
        self._prefixes = prefixes
        self._lease = cache.lease
        self._wanted = 0

    def settle(self, waiting: Iterable[int]) -> None:
        """Ask for what requests of so many tokens each need; give back what is not in use.

        What is not in use are free blocks, then rows that are kept, the longest unused first.
        """
        lease = self._lease
        if lease is None:
            return
        wanted = sum(map(self._bytes_for, waiting))
        with suppress(LedgerLost):
            if wanted or self._wanted:
                wanted -= min(wanted, self._unused())
                lease.want(wanted)
                self._wanted = wanted
        if lease.held > lease.limit:
            self._cache.give_back()

    def owed(self) -> bool:
        """Whether running requests must make room for a member below its guarantee."""
        return self._lease is not None and self._lease.owed > 0

    def may_spare(self, tokens: int) -> bool:
        """Whether a request that does not fit now may fit once neighbours need less."""
        lease = self._lease
        return lease is not None and not lease.lost and self._bytes_for(tokens) <= lease.reach

    def wait_for(self, tokens: int) -> None:
        """Wait for a moment, or until a request of so many tokens fits."""
        if self._lease is not None:
            with suppress(LedgerLost):
                self._lease.wait_for(self._bytes_for(tokens), _ROUND_S)

    def leave(self) -> None:
        """Want nothing any more."""
        if self._lease is not None and self._wanted:
            with suppress(Error):
                self._lease.want(0)

    def _bytes_for(self, tokens: int) -> int:
        return self._cache._pages_for(tokens) * self._cache.page_size

    def _unused(self) -> int:
        """Return bytes that the cache holds and no request needs."""
        stats = self._cache.stats()
        kept = 0 if self._prefixes is None else self._prefixes.kept_pages()
        return (stats.pages_free + stats.pages_retained + kept) * stats.page_size
