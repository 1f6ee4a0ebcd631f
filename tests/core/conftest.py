# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from checked_cache import Bench, small_spec


@pytest.fixture(params=["host", "cumem-emulated", "stock-uvm-emulated", "patched-emulated"])
def driver_name(request):
    return request.param


@pytest.fixture
def open_bench():
    """Open benches; afterwards every one must give all of it back."""
    benches = []

    def open_one(spec=None, **options):
        bench = Bench(spec or small_spec(), **options)
        benches.append(bench)
        return bench

    yield open_one
    for bench in benches:
        bench.faults.disarm()
        if not bench.cache.closed:
            bench.cache.drain()
            bench.check_books()
        bench.cache.close()
        assert bench.checked.mapped_bytes == 0
        assert bench.checked.live_slabs == 0
