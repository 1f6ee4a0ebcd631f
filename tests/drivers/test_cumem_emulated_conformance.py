# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from conformance import DriverConformance
from mapped_space import Space

from pyvattn import _native
from pyvattn._native import emulated_cuda as gpu


class EmulatedSpace(Space):
    """Memory that the CPU can touch as well: an emulated kernel shows whether a peer may."""

    def write_from(self, peer, place, data):
        kernel = gpu.launch_kernel(peer, 0, self.address(place), len(data))
        gpu.release_kernel(kernel)
        _native.stream_fence("cumem-emulated", peer, 0).wait()  # raises what it did wrong
        self.write(place, data)


class TestEmulatedCuMem(DriverConformance):
    name = "cumem-emulated"

    @pytest.fixture
    def space(self, driver, page):
        space = EmulatedSpace(driver, page)
        yield space
        space.give_back()
