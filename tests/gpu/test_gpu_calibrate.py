# SPDX-License-Identifier: Apache-2.0
"""Calibration on a GPU: every constant is there, and kernels are measured on every layout."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from pyvattn import _native
from pyvattn.calibrate import Options, measure_driver
from pyvattn.calibrate.kernels import measure_losses
from pyvattn.errors import DriverUnavailable

pytestmark = pytest.mark.alone


@pytest.fixture(params=["cumem", "stock-uvm", "patched"])
def driver(request):
    try:
        _native.driver_capabilities(request.param, 0)
    except DriverUnavailable as error:
        pytest.skip(str(error))
    return request.param


def test_calls_and_rates(driver):
    found = measure_driver(driver, Options(rounds=5))
    assert all(us > 0 for us in (*found.map_us.values(), *found.unmap_us.values()))
    assert found.read_gb_per_s > 0
    assert found.zero_gb_per_s > 0


def test_what_layouts_cost_kernels(driver):
    found = measure_losses(driver, 0, rounds=7)
    assert all(0 <= share < 1 for share in vars(found).values())
