# SPDX-License-Identifier: Apache-2.0
"""The row map on every driver that needs no GPU; the emulated machine runs the same suite."""

from __future__ import annotations

from row_conformance import RowConformance

from pyvattn import _native


class TestHost(RowConformance):
    name = "host"


class TestCumemEmulated(RowConformance):
    name = "cumem-emulated"


class TestStockUvmEmulated(RowConformance):
    name = "stock-uvm-emulated"


class TestPatchedEmulated(RowConformance):
    name = "patched-emulated"


def test_every_driver_has_its_suite():
    here = {suite.name for suite in RowConformance.__subclasses__()}
    assert here == {"host", *(n for n in _native.driver_names() if _native.emulates(n))}
