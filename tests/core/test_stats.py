# SPDX-License-Identifier: Apache-2.0
"""The core's counts and what Python calls them."""

from __future__ import annotations

from dataclasses import fields

import pytest

from pyvattn import CacheSpec, KVCache, _native
from pyvattn.rows import PoolStats
from pyvattn.stats import Stats


@pytest.mark.parametrize(
    ("shown", "counted"), [(Stats, _native.CacheStats), (PoolStats, _native.BlockPoolStats)]
)
def test_every_count_of_the_core_has_a_field_and_no_other(shown, counted):
    counts = {name for name in vars(counted) if isinstance(vars(counted)[name], property)}
    assert {field.name for field in fields(shown)} == counts


def test_what_is_derived_follows_from_the_counts():
    spec = CacheSpec(2, 2, 8, "float32", max_slots=2, max_tokens=4096, guard_tokens=0)
    options = {"page_size": "64K", "layout": "layer", "background": False}
    with KVCache(spec, device="cpu", memory="4MiB", **options) as cache:
        slot = cache.acquire()
        cache.step({slot: 1025})  # a page of K or V of a layer holds 1,024 tokens
        found = cache.stats()
        page, arenas = 64 << 10, 2 * spec.layers
        assert found.bytes_live == found.bytes_mapped == 2 * arenas * page
        assert found.bytes_wasted == 2 * arenas * page - 1025 * spec.token_bytes
        assert found.mean_extent == 2.0
        assert found.as_dict()["bytes_allocated"] == found.bytes_allocated >= found.bytes_mapped
