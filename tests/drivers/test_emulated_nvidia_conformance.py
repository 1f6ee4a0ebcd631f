# SPDX-License-Identifier: Apache-2.0
"""Every driver's suite on the emulated NVIDIA machine, on each layout of its ioctls."""

from __future__ import annotations

import gc

import pytest
from conformance import DriverConformance

from pyvattn import _native

emulated_cuda, emulated_nvidia = _native.emulated_cuda, _native.emulated_nvidia

# The oldest and the newest layout; test_stock_uvm.py maps on all of them.
LAYOUTS = _native.driver_layouts()
RELEASES = [LAYOUTS[0][1][0], LAYOUTS[-1][1][-1]]


def start_machine(release: str) -> None:
    settings = emulated_nvidia.Settings()
    settings.release = settings.layout_of = release
    gc.collect()  # no driver of the machine before may live on
    emulated_nvidia.reset(settings)


@pytest.fixture(params=RELEASES)
def _machine(request):
    start_machine(request.param)
    yield
    assert emulated_cuda.violations() == []


def test_both_generations_of_the_map_parameters_are_run():
    sizes = [layout["map_bytes"] for layout, names in LAYOUTS for r in RELEASES if r in names]
    assert sizes == [1200, 9264]


@pytest.mark.usefixtures("_machine")
class TestEmulatedStockUvm(DriverConformance):
    name = "stock-uvm-emulated"


@pytest.mark.usefixtures("_machine")
class TestEmulatedPatched(DriverConformance):
    name = "patched-emulated"
