from __future__ import annotations

import numpy as np
import pytest

from pyvattn import CacheSpec, KVCache, _native

PAGE = 64 << 10


def small_spec(**changes):
    """4 arenas in layout `layer`; a token takes 1 KiB of each, so 64 tokens a page."""
    fields = {"layers": 2, "kv_heads": 4, "head_dim": 64, "dtype": "float32"}
    return CacheSpec(**{**fields, "max_slots": 4, "max_tokens": 1024, **changes})


class Bench:
    """A cache on a checked driver whose calls can be made to fail."""

    def __init__(self, spec, *, name="host", layout="layer", pages=256, eager=False):
        page = _native.driver_capabilities(name).page_sizes[0]
        self.faults = _native.FaultAdaptor(_native.make_driver(name, page))
        self.checked = _native.CheckedAdaptor(self.faults)
        self.cache = KVCache.on_driver(
            spec, self.checked, layout=layout, memory=pages * page, eager=eager
        )
        self.page = page

    def check_books(self):
        """Every page is in one place, and what counts as mapped is mapped."""
        s = self.cache.stats()
        assert s.pages_free + s.pages_mapped + s.pages_quarantined == s.pages_allocated
        assert s.pages_live + s.pages_retained == s.pages_mapped
        assert self.checked.mapped_bytes == (s.pages_mapped + s.pages_quarantined) * s.page_size
        return s

    def state(self):
        """All that a caller could notice, times and counts of calls aside."""
        s = self.cache.stats()
        return {
            "mapped bytes": self.checked.mapped_bytes,
            **{
                name: getattr(s, name)
                for name in (
                    "pages_allocated",
                    "pages_free",
                    "pages_mapped",
                    "pages_quarantined",
                    "pages_live",
                    "pages_retained",
                    "slabs",
                    "slots_live",
                    "memory_limit",
                    "bytes_used",
                )
            },
        }

    def arrays(self, layer=0):
        return self.cache.layer(layer, np.from_dlpack)


@pytest.fixture(params=["host", "cumem-emulated"])
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
