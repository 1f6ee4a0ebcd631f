# SPDX-License-Identifier: Apache-2.0
"""The contiguous cache as a replay's allocator: the real core, counting instead of mapping."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from pyvattn import _native
from pyvattn.arguments import check_type
from pyvattn.cache import KVCache
from pyvattn.geometry import check_page_size
from pyvattn.replay.allocator import pop_live
from pyvattn.spec import CacheSpec
from pyvattn.units import format_page_size

if TYPE_CHECKING:
    from pyvattn.cache import Slot


class ContiguousAllocator:
    """A :class:`pyvattn.KVCache` in accounting mode.

    The background is off, so that equal traces give equal counts; a released
    slot keeps its pages until memory is short.
    """

    def __init__(
        self,
        spec: CacheSpec,
        memory_limit: int,
        page_size: int,
        layout: str,
        layers_per_arena: int | None = None,
        read_ahead: int = 0,
    ) -> None:
        check_type("spec", spec, CacheSpec)
        page_size = check_page_size(page_size)
        self._driver = _native.StatisticsAdaptor(_native.make_driver("host-accounting", page_size))
        self._cache = KVCache.on_driver(
            spec,
            self._driver,
            layout=layout,
            layers_per_arena=layers_per_arena,
            memory=memory_limit,
            background=False,
            read_ahead=read_ahead,
        )
        self.label = self.name(spec, page_size, layout, layers_per_arena)
        self._slots: dict[int, Slot] = {}

    @staticmethod
    def name(
        spec: CacheSpec, page_size: int, layout: str, layers_per_arena: int | None = None
    ) -> str:
        """Return the label that such an allocator has."""
        check_type("spec", spec, CacheSpec)
        geometry = spec.geometry(layout, page_size, layers_per_arena)
        return f"{geometry.layout_name}, {format_page_size(geometry.page_size)}"

    def can_admit(self, tokens: int) -> bool:
        """See :class:`~pyvattn.replay.allocator.Allocator`, here and below."""
        return self._cache.can_admit(tokens)

    def admit(self, tokens: int) -> int:
        """Acquire the slot that fits best."""
        slot = self._cache.acquire(tokens)
        row = int(slot)
        self._slots[row] = slot
        return row

    def step(self, rows: array[int], lengths: array[int]) -> None:
        """Make the lengths resident."""
        self._cache.step_array(rows, lengths)

    def release(self, row: int) -> None:
        """Release the slot; it keeps its pages for the next request."""
        self._cache.release(pop_live(self._slots, row))

    def memory(self) -> tuple[int, int]:
        """Return the bytes of live slots and of all slots."""
        stats = self._cache.stats()
        return stats.bytes_live, stats.bytes_mapped

    def calls(self) -> tuple[int, int]:
        """Return the driver's map and unmap calls."""
        stats = self._cache.stats()
        return stats.map_calls, stats.unmap_calls

    def mean_extent_bytes(self) -> float:
        """Return the bytes that a map call covered on average."""
        mapped = self._driver.counts()["map"]
        return mapped.bytes / mapped.calls if mapped.calls else 0.0

    def close(self) -> None:
        """Close the cache."""
        self._cache.close()
