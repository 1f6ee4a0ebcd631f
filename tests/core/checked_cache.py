# SPDX-License-Identifier: Apache-2.0
"""The cache that the tests of this folder work on."""

from __future__ import annotations

import numpy as np

from pyvattn import CacheSpec, KVCache, _native
from pyvattn._native import emulated_cuda as gpu

PAGE = 64 << 10


def small_spec(**changes):
    """4 arenas in layout `layer`; a token takes 1 KiB of each, so 64 tokens a page."""
    fields = {"layers": 2, "kv_heads": 4, "head_dim": 64, "dtype": "float32"}
    return CacheSpec(**{**fields, "max_slots": 4, "max_tokens": 1024, **changes})


class Bench:
    """A cache on a checked driver whose calls can be made to fail."""

    def __init__(
        self, spec, *, name="host", layout="layer", pages=256, background=False, shares=False
    ):
        page = _native.driver_capabilities(name).page_sizes[0]
        self.faults = _native.FaultAdaptor(_native.make_driver(name, page))
        self.checked = _native.CheckedAdaptor(self.faults)
        self.cache = KVCache.on_driver(
            spec, self.checked, layout=layout, memory=pages * page, background=background
        )
        self.page = page
        # Whether requests are forked: a page may then be mapped at several addresses.
        self.shares = shares

    def check_books(self):
        """Every page is in one place, and what counts as mapped is mapped."""
        s = self.cache.stats()
        assert s.pages_free + s.pages_mapped + s.pages_quarantined == s.pages_allocated
        assert s.pages_live + s.pages_retained == s.pages_mapped
        pages = (s.pages_mapped + s.pages_quarantined) * s.page_size
        assert self.checked.mapped_bytes == pages or (
            self.shares and self.checked.mapped_bytes > pages
        )
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


class Later:
    """The end of a kernel that runs until the test says so."""

    def __init__(self):
        stream = gpu.make_stream(0)
        self._kernel = gpu.launch_kernel(0, stream)
        self.fence = _native.stream_fence("cumem-emulated", 0, stream)

    def come(self):
        gpu.release_kernel(self._kernel)
        assert self.fence.passed()
