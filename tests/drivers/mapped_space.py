# SPDX-License-Identifier: Apache-2.0
"""Addresses of a driver, and memory to map there: what every test of a driver works on."""

from __future__ import annotations

import ctypes

from pyvattn import _native


class Space:
    """``pages`` pages of addresses, and ``slabs`` slabs that hold as many pages together.

    The CPU reaches the memory. A place is a page of the addresses; memory is counted in pages
    too, from the first slab on.
    """

    def __init__(self, driver, page, pages=8, slabs=1, alignment=None):
        self.driver, self.page = driver, page
        self.bytes = pages * page
        self.slab_bytes = self.bytes // slabs
        self.base = driver.reserve(self.bytes, alignment or page)
        self.slabs = [driver.allocate_slab(self.slab_bytes) for _ in range(slabs)]
        self.mapped: dict[int, int] = {}

    def address(self, place):
        return self.base + place * self.page

    def entry(self, place, memory=None, pages=1):
        """Map ``pages`` pages of memory at a place, by default those of the same number.

        What lies past the last slab is named as a part of it, for tests of what is refused.
        """
        start = (place if memory is None else memory) * self.page
        slab = min(start // self.slab_bytes, len(self.slabs) - 1)
        offset = start - slab * self.slab_bytes
        return _native.MapEntry(self.address(place), pages * self.page, self.slabs[slab], offset)

    def map(self, place, memory):
        self.driver.map([self.entry(place, memory)])
        self.mapped[place] = memory

    def unmap(self, place):
        self.driver.unmap([self.entry(place, self.mapped.pop(place))])

    def write(self, place, data):
        ctypes.memmove(self.address(place), data, len(data))

    def write_from(self, peer, place, data):
        raise NotImplementedError("of drivers whose memory other devices reach")

    def read(self, place, size=64):
        return ctypes.string_at(self.address(place), size)

    def give_back(self):
        """Unmap what :meth:`map` has mapped, and let go of memory, addresses and driver."""
        for place in list(self.mapped):
            self.unmap(place)
        for slab in self.slabs:
            self.driver.free_slab(slab)
        self.driver.release_reservation(self.base)
        del self.driver
