# SPDX-License-Identifier: Apache-2.0
"""What the cache holds while requests run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pyvattn.samples import Sample, paged_bytes

if TYPE_CHECKING:
    from pyvattn.cache import KVCache


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
                requests=len(lengths),
                used=sum(lengths) * token_bytes,
                held=stats.bytes_live,
                mapped=stats.bytes_mapped,
                paged=paged_bytes(lengths, token_bytes),
            )
        )
        return self.samples[-1]
