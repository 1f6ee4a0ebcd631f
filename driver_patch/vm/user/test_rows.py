# SPDX-License-Identifier: MIT OR GPL-2.0
"""Rows and blocks, as engines drive them, on the real nvidia-uvm and the simulated GPU."""

from __future__ import annotations

import gc

import pytest
from machine_gpu import DeviceMemory, FailingModule
from row_conformance import (
    RowConformance,
    flush_fails_and_changes_nothing,
    stage_every_kind_of_change,
)
from row_engine import Engine


@pytest.fixture(autouse=True)
def _drivers_end():
    """Each driver holds 130 MB of CUDA's memory: none may live on in a reference cycle."""
    yield
    gc.collect()


class TestRowsOnStockUvm(RowConformance):
    name = "stock-uvm"
    memory = DeviceMemory()
    operations = 40


class TestRowsOnPatched(RowConformance):
    name = "patched"
    memory = DeviceMemory()
    operations = 60

    def test_a_flush_is_whole_or_not_at_all_whichever_call_of_the_module_fails(self):
        failures, nth = 0, 1
        while (result := self.flush_fails_in_the_module(nth)) != "has no such call":
            failures += result == "failed"
            nth += 1
        assert failures > 1

    def flush_fails_in_the_module(self, nth):
        """What a flush does whose nth call fails of those that nvidia-uvm makes of nvidia.ko."""
        with Engine(self.name, self.memory) as engine:
            stage_every_kind_of_change(engine)
            with FailingModule(nth) as module:
                failed = flush_fails_and_changes_nothing(engine)
        assert module.failed or not failed
        return "failed" if failed else "went on" if module.failed else "has no such call"
