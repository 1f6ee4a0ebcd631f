# SPDX-License-Identifier: Apache-2.0
import pytest
from conformance import DriverConformance
from mapped_space import Space

from pyvattn import DriverError, OutOfMemory, _native


class TestHost(DriverConformance):
    name = "host"


def test_a_failure_that_cannot_be_undone_is_reported_by_the_next_map():
    """As where the process has no mappings left: what is mapped is not what the core believes."""
    page = 64 << 10
    driver = _native.make_driver("host", page)
    space = Space(driver, page)
    space.map(0, 0)
    # Its memory is gone, so it cannot be mapped again once the second entry has failed.
    driver.free_slab(space.slabs[0])
    outside = _native.MapEntry(1 << 63, page, 1, 0)
    with pytest.raises(OutOfMemory, match="unmap"):
        driver.unmap([space.entry(0, 0), outside])
    slab = driver.allocate_slab(page)
    with pytest.raises(DriverError, match="could not be undone: close this cache"):
        driver.map([_native.MapEntry(space.address(1), page, slab, 0)])
    # Closing the cache still takes mappings away.
    driver.unmap([_native.MapEntry(space.address(1), page, slab, 0)])
