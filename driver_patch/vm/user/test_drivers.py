# SPDX-License-Identifier: MIT OR GPL-2.0
"""pyvattn as it is installed, on the real nvidia-uvm and the simulated GPU."""

from __future__ import annotations

import gc

import conformance
import pytest
from machine_gpu import (
    DeviceSpace,
    page_sizes,
    patch_statistics,
    simulator_counters,
    suspended,
)

from pyvattn import CacheSpec, KVCache, _native
from pyvattn.detect import auto_driver, detect_drivers
from pyvattn.errors import DriverUnavailable

KB = 1 << 10


@pytest.fixture(autouse=True)
def _drivers_end():
    """Each driver holds 130 MB of CUDA's memory: none may live on in a reference cycle."""
    yield
    gc.collect()


class OnMachine(conformance.DriverConformance):
    """The suite that every driver passes, with memory that the CPU cannot touch."""

    @pytest.fixture
    def space(self, driver, page):
        space = DeviceSpace(driver, page)
        yield space
        space.give_back()

    def test_a_call_waits_while_the_system_is_suspended(self, space):
        space.map(1, 2)
        space.write(1, b"x" * 64)
        with suspended() as resume_when_i_wait:
            resume_when_i_wait()
            space.map(5, 2)
        assert space.read(1) == b"x" * 64
        assert space.read(5) == b"x" * 64

    def test_the_driver_itself_rolls_a_bad_batch_back(self, page, monkeypatch):
        monkeypatch.setattr(conformance, "Space", DeviceSpace)
        super().test_the_driver_itself_rolls_a_bad_batch_back(page)


class TestStockUvm(OnMachine):
    name = "stock-uvm"


class TestPatched(OnMachine):
    name = "patched"

    @pytest.mark.parametrize("size", [128 * KB, 256 * KB])
    def test_page_groups_keep_what_is_written(self, size):
        space = DeviceSpace(_native.make_driver(self.name, size), size)
        space.map(1, 4)
        space.write(1, b"x" * 64)
        space.map(6, 4)
        assert space.read(6) == b"x" * 64
        space.give_back()

    def test_auto_chooses_it_where_the_query_answers(self):
        reports = detect_drivers()
        assert auto_driver(reports, "cuda") == "patched"
        assert page_sizes("patched") == [64 * KB << i for i in range(6)]

    def test_a_decode_step_is_one_ioctl_and_one_invalidate(self):
        """Every request grows by a page in every arena; page tables are there from before."""
        spec = CacheSpec(
            layers=4, kv_heads=8, head_dim=128, dtype="bfloat16", max_slots=16, max_tokens=2048
        )
        with KVCache(
            spec,
            device="cuda",
            driver="auto",
            page_size="64K",
            layout="layer",
            memory="96MiB",
            background=False,
            read_ahead=0,
        ) as cache:
            assert cache.driver == "patched"
            slots = [cache.acquire(32) for _ in range(16)]
            cache.step(dict.fromkeys(slots, 32))
            before, pushed = patch_statistics(), simulator_counters()
            cache.step(dict.fromkeys(slots, 64))
            after, done = patch_statistics(), simulator_counters()
        grown = {key: after[key] - before[key] for key in after}
        arenas_of_requests = 2 * spec.layers * len(slots)
        assert grown["map_calls"] == 1
        assert grown["unmap_calls"] == grown["failed_calls"] == 0
        assert grown["ptes_written"] == arenas_of_requests
        assert grown["pte_pushes"] == 1
        # What the GPU saw is all that there is; a step that takes new slabs also zeroes them.
        assert done["pushes"] - pushed["pushes"] == 1 + grown["clear_pushes"]
        assert done["invalidates"] - pushed["invalidates"] == 1


class TestStockModule:
    def test_a_module_without_the_patch_is_recognised(self):
        with pytest.raises(DriverUnavailable, match="not patched"):
            _native.driver_capabilities("patched", 0)
        assert auto_driver(detect_drivers(), "cuda") == "cumem"
