# SPDX-License-Identifier: Apache-2.0
"""What a cache counts."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

from pyvattn import _native
from pyvattn.arguments import check_type


@dataclass(frozen=True)
class Stats:
    """A cache at one moment. Sizes are in bytes, times in seconds since it was opened.

    Every page is in one of three places: ``pages_free + pages_mapped +
    pages_quarantined == pages_allocated``.

    * ``pages_allocated``: of ``page_size`` bytes each, in ``slabs`` allocations of the driver.
    * ``pages_free``: under no slot, clean.
    * ``pages_mapped``: under slots. ``pages_live`` of them are what live requests
      need; ``pages_retained`` are left over from earlier requests, clean, and go
      to slots that need them; ``pages_ahead`` of these lie under live slots, read
      ahead or inherited.
    * ``pages_quarantined``: of released slots and of trimmed fronts, not zeroed yet or still
      within reach of running kernels.
    * ``reclaimed_pages``: taken so far from slots that did not need them, for others.
    * ``slots_live``: requests that hold a slot.
    * ``memory_limit``: what slabs may take in all. ``bytes_reserved``: addresses, which cost
      no memory. ``bookkeeping_bytes``: host memory of the tables.
    * ``bytes_used``: tokens below the lengths of live slots that were not trimmed, for each
      slot; pages that forks share count once.
    * ``map_calls``: one for each extent; ``map_batches``: one for each time
      that the driver was asked; ``map_bytes``: what they mapped in all. ``unmap_calls``: the
      other way.
    * ``driver_failures``: calls of the driver that failed, and changed nothing.
      ``prefetch_failures``: times that the mapper thread could not map what was asked of it.
    * ``zeroed_bytes``: cleaned so far; ``zero_seconds``: what the calls for it took.
    * ``map_seconds_blocking``: what ``step`` waited for pages;
      ``map_seconds_hidden``: what the mapper thread did meanwhile.
    """

    pages_allocated: int
    pages_free: int
    pages_mapped: int
    pages_quarantined: int
    pages_live: int
    pages_retained: int
    pages_ahead: int
    page_size: int
    slabs: int
    slots_live: int
    memory_limit: int
    bytes_used: int
    bytes_reserved: int
    map_calls: int
    map_batches: int
    map_bytes: int
    unmap_calls: int
    driver_failures: int
    prefetch_failures: int
    reclaimed_pages: int
    zeroed_bytes: int
    zero_seconds: float
    map_seconds_blocking: float
    map_seconds_hidden: float
    bookkeeping_bytes: int

    @classmethod
    def read(cls, native: _native.CacheStats) -> Stats:
        """Copy the counts of the core."""
        check_type("native", native, _native.CacheStats)
        return cls(**{field.name: getattr(native, field.name) for field in fields(cls)})

    @property
    def bytes_allocated(self) -> int:
        """Bytes of all slabs."""
        return self.pages_allocated * self.page_size

    @property
    def bytes_mapped(self) -> int:
        """Bytes mapped under slots, live or not."""
        return self.pages_mapped * self.page_size

    @property
    def bytes_live(self) -> int:
        """Bytes mapped that live requests need."""
        return self.pages_live * self.page_size

    @property
    def bytes_wasted(self) -> int:
        """Bytes that live requests need but no token fills: the rest of their last pages.

        What forks share counts once as live and for each of them as used: never below 0.
        """
        return max(0, self.bytes_live - self.bytes_used)

    @property
    def mean_extent(self) -> float:
        """Pages that one map call maps, in the mean; 0.0 before the first."""
        return self.map_bytes / self.page_size / self.map_calls if self.map_calls else 0.0

    def as_dict(self) -> dict[str, int | float]:
        """Return all of it, the derived figures too, for JSON."""
        derived = ("bytes_allocated", "bytes_mapped", "bytes_live", "bytes_wasted", "mean_extent")
        return {**asdict(self), **{name: getattr(self, name) for name in derived}}
