# SPDX-License-Identifier: Apache-2.0
"""What every driver must do: subclass, name the driver, and the suite runs on it.

Memory is reached as the suite's ``Space`` reaches it: by the CPU, for the host and the
emulated drivers; a GPU's subclass it.
"""

from __future__ import annotations

import pytest
from mapped_space import Space

from pyvattn import _native
from pyvattn.errors import DriverError


class DriverConformance:
    """Hold one driver to uvm_ext/drivers/driver.hpp. Subclasses set ``name``."""

    name: str

    @pytest.fixture(params=["smallest", "largest"])
    def page(self, request):
        sizes = _native.driver_capabilities(self.name).page_sizes
        return sizes[0] if request.param == "smallest" else sizes[-1]

    @pytest.fixture
    def faults(self, page):
        peers = _native.driver_capabilities(self.name).peers
        return _native.FaultAdaptor(_native.make_driver(self.name, page, 0, bool(peers)))

    @pytest.fixture
    def driver(self, faults):
        """The driver behind the adaptor that refuses broken preconditions."""
        checked = _native.CheckedAdaptor(faults)
        yield checked
        assert checked.mapped_bytes == 0, "the test left mappings"
        assert checked.live_slabs == 0, "the test left slabs"
        assert checked.live_reservations == 0, "the test left reservations"

    @pytest.fixture
    def space(self, driver, page):
        """Eight pages of addresses, and a slab of as many."""
        space = Space(driver, page)
        yield space
        space.give_back()

    def test_page_sizes_are_ascending_powers_of_two(self):
        sizes = _native.driver_capabilities(self.name).page_sizes
        assert sizes
        assert sizes == sorted(set(sizes))
        assert all(size & (size - 1) == 0 for size in sizes)

    def test_reservation_is_aligned(self, driver, page):
        address = driver.reserve(4 * page, 2 * page)
        assert address % (2 * page) == 0
        driver.release_reservation(address)

    def test_two_reservations_do_not_overlap(self, driver, page):
        first, second = driver.reserve(4 * page, page), driver.reserve(4 * page, page)
        assert abs(first - second) >= 4 * page
        driver.release_reservation(first)
        driver.release_reservation(second)

    def test_fresh_memory_reads_as_zeros(self, space):
        space.map(0, 0)
        assert space.read(0) == bytes(64)

    def test_what_is_written_stays_through_a_second_mapping(self, space):
        space.map(0, 3)
        space.write(0, b"tokens")
        space.map(5, 3)
        assert space.read(5).startswith(b"tokens")
        space.write(5, b"TOKENS")
        assert space.read(0).startswith(b"TOKENS")

    def test_memory_survives_unmapping(self, space):
        space.map(0, 1)
        space.write(0, b"kept")
        space.unmap(0)
        space.map(2, 1)
        assert space.read(2).startswith(b"kept")

    def test_peers_reach_what_is_mapped(self, space, driver):
        if not driver.capabilities.peers:
            pytest.skip("no other device can reach the memory of this driver")
        driver.map([space.entry(i, i) for i in range(2)])
        space.mapped = {0: 0, 1: 1}
        for peer in driver.capabilities.peers:
            for place in (0, 1):
                space.write_from(peer, place, f"from {peer}".encode())
                assert space.read(place).startswith(f"from {peer}".encode())

    def test_pages_of_a_batch_are_apart(self, space, driver):
        driver.map([space.entry(i, i) for i in range(4)])
        for i in range(4):
            space.write(i, bytes([65 + i]) * 8)
        assert [space.read(i)[0] for i in range(4)] == [65, 66, 67, 68]
        driver.unmap([space.entry(i, i) for i in range(4)])

    def test_part_of_a_run_can_be_unmapped(self, space, driver):
        run = [space.entry(i, i) for i in range(4)]
        driver.map(run)
        for i in range(4):
            space.write(i, bytes([65 + i]) * 8)
        driver.unmap(run[1:3])
        assert space.read(0)[0] == 65
        assert space.read(3)[0] == 68
        driver.unmap([run[0], run[3]])

    def test_an_extent_of_several_pages_can_be_unmapped_page_by_page(self, space, driver, page):
        driver.map([_native.MapEntry(space.address(2), 3 * page, space.slabs[0], 4 * page)])
        for i in range(3):
            assert space.read(2 + i) == bytes(64)
            space.write(2 + i, bytes([65 + i]) * 8)
        driver.unmap([space.entry(3, 5)])
        space.map(0, 5)
        assert [space.read(place)[0] for place in (2, 0, 4)] == [65, 66, 67]
        driver.unmap([space.entry(2, 4), space.entry(4, 6)])

    def test_unmapped_addresses_read_as_zeros_where_the_driver_says_so(self, space, driver):
        if not driver.capabilities.zero_backed:
            pytest.skip("reserved addresses of this driver are backed by nothing")
        assert space.read(6) == bytes(64)
        space.map(6, 0)
        space.write(6, b"secret")
        space.unmap(6)
        assert space.read(6) == bytes(64)

    def test_zero_clears_what_is_mapped_and_nothing_else(self, space, driver, page):
        driver.map([space.entry(0, 0), space.entry(1, 1)])
        space.write(0, b"old")
        space.write(1, b"kept")
        driver.zero([(space.address(0), page)])
        assert space.read(0) == bytes(64)
        assert space.read(1).startswith(b"kept")
        driver.unmap([space.entry(0, 0), space.entry(1, 1)])

    def test_a_batch_whose_last_entry_is_bad_maps_nothing(self, space, driver, page):
        bad = _native.MapEntry(space.address(2), page, 0xDEAD, 0)
        with pytest.raises(DriverError):
            driver.map([space.entry(0, 0), space.entry(1, 1), bad])
        driver.map([space.entry(0, 0), space.entry(1, 1)])
        driver.unmap([space.entry(0, 0), space.entry(1, 1)])

    def test_the_driver_itself_rolls_a_bad_batch_back(self, page):
        """Past the checks, as when the system refuses the third of three maps."""
        driver = _native.make_driver(self.name, page)
        space = Space(driver, page)
        bad = _native.MapEntry(space.address(2), page, 0xDEAD, 0)
        with pytest.raises(DriverError) as caught:
            driver.map([space.entry(0, 0), space.entry(1, 1), bad])
        assert caught.value.operation
        assert caught.value.status
        driver.map([space.entry(0, 0), space.entry(1, 1)])
        driver.unmap([space.entry(0, 0), space.entry(1, 1)])
        space.give_back()

    @pytest.mark.parametrize("call", ["map", "unmap", "zero", "allocate_slab", "free_slab"])
    def test_a_failed_call_can_be_made_again(self, space, driver, faults, page, call):
        extra = driver.allocate_slab(space.slab_bytes)
        if call in ("unmap", "zero"):
            space.map(0, 0)
        act = {
            "map": lambda: driver.map([space.entry(0, 0)]),
            "unmap": lambda: driver.unmap([space.entry(0, 0)]),
            "zero": lambda: driver.zero([(space.address(0), page)]),
            "allocate_slab": lambda: driver.free_slab(driver.allocate_slab(space.slab_bytes)),
            "free_slab": lambda: driver.free_slab(extra),
        }[call]
        faults.fail_nth(0)
        with pytest.raises(DriverError, match="injected"):
            act()
        act()
        if call != "free_slab":
            driver.free_slab(extra)
        if call in ("map", "zero"):
            driver.unmap([space.entry(0, 0)])
        space.mapped.clear()

    def test_double_map_is_refused(self, space, driver):
        space.map(0, 0)
        with pytest.raises(DriverError, match="already mapped"):
            driver.map([space.entry(0, 1)])

    def test_unmap_of_nothing_is_refused(self, space, driver):
        with pytest.raises(DriverError, match="not mapped"):
            driver.unmap([space.entry(0, 0)])

    def test_unmap_of_something_else_is_refused(self, space, driver):
        space.map(0, 0)
        with pytest.raises(DriverError, match="something else"):
            driver.unmap([space.entry(0, 1)])

    def test_free_of_a_mapped_slab_is_refused(self, space, driver):
        space.map(0, 0)
        with pytest.raises(DriverError, match="still mapped"):
            driver.free_slab(space.slabs[0])

    def test_release_of_a_mapped_reservation_is_refused(self, space, driver):
        space.map(0, 0)
        with pytest.raises(DriverError, match="still mapped"):
            driver.release_reservation(space.base)

    def test_addresses_outside_reservations_are_refused(self, space, driver, page):
        end = _native.MapEntry(space.base + space.bytes, page, space.slabs[0], 0)
        with pytest.raises(DriverError, match="not reserved"):
            driver.map([end])

    def test_what_is_not_aligned_is_refused(self, space, driver, page):
        entry = _native.MapEntry(space.base + page // 2, page, space.slabs[0], 0)
        with pytest.raises(DriverError, match="aligned"):
            driver.map([entry])

    def test_unknown_page_size_is_refused(self):
        from pyvattn.errors import ConfigError

        with pytest.raises(ConfigError, match="choose one of"):
            _native.make_driver(self.name, 12345)
