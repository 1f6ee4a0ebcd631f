# SPDX-License-Identifier: Apache-2.0
"""The core's counts and what Python calls them."""

from __future__ import annotations

from dataclasses import fields

import pytest

from pyvattn import _native
from pyvattn.rows import PoolStats
from pyvattn.stats import Stats


@pytest.mark.parametrize(
    ("shown", "counted"), [(Stats, _native.CacheStats), (PoolStats, _native.BlockPoolStats)]
)
def test_every_count_of_the_core_has_a_field_and_no_other(shown, counted):
    counts = {name for name in vars(counted) if isinstance(vars(counted)[name], property)}
    assert {field.name for field in fields(shown)} == counts
