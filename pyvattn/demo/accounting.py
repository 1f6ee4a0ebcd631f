"""What the cache holds while requests run, and what other caches would hold."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyvattn.cache import KVCache

BLOCK_TOKENS = 16


@dataclass(frozen=True)
class Sample:
    """Memory after one step, in bytes, and the seconds since the start.

    ``mapped`` are all pages under slots, ``live`` those under running requests
    (the rest is kept for the next ones), ``used`` the tokens themselves, and
    ``paged`` what a 16-token paged cache would hold for them.
    """

    seconds: float
    mapped: int
    live: int
    used: int
    paged: int
    running: int


def paged_bytes(lengths: Sequence[int], token_bytes: int, block: int = BLOCK_TOKENS) -> int:
    """Return the bytes of a paged cache that holds ``lengths`` in blocks of ``block`` tokens."""
    return sum(-(-length // block) * block for length in lengths) * token_bytes


def static_bytes(slots: int, longest: int, token_bytes: int) -> int:
    """Return the bytes of a static cache with ``slots`` rows of the longest request's length."""
    return slots * longest * token_bytes


class Meter:
    """Takes a sample of a cache at the start and after every step."""

    def __init__(self, cache: KVCache) -> None:
        self.cache = cache
        self.samples: list[Sample] = []
        self._start = time.perf_counter()
        self.sample([])

    def sample(self, lengths: Sequence[int]) -> Sample:
        """Note what is held while slots of ``lengths`` tokens are live."""
        stats, token_bytes = self.cache.stats(), self.cache.spec.token_bytes
        self.samples.append(
            Sample(
                seconds=time.perf_counter() - self._start,
                mapped=stats.bytes_mapped,
                live=stats.bytes_live,
                used=sum(lengths) * token_bytes,
                paged=paged_bytes(lengths, token_bytes),
                running=len(lengths),
            )
        )
        return self.samples[-1]
