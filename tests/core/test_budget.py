# SPDX-License-Identifier: Apache-2.0
"""Budgets that caches and pools are given from outside, alone or together."""

from __future__ import annotations

import pytest
from checked_cache import PAGE, small_spec

from pyvattn import BlockPool, ConfigError, KVCache, LimitError, MemoryLimit, OutOfMemory
from pyvattn.budget import Budget, budget_of

# One page in each of the four arenas.
BLOCK = 4 * PAGE
TOKENS = 64


def opened(budget, **options):
    options = {"page_size": PAGE, "layout": "layer", "background": False, **options}
    return KVCache(small_spec(), device="cpu", memory=budget, **options)


_kept = []


def fill(cache, blocks):
    _kept.append(cache.admit(blocks * TOKENS))
    return _kept[-1]


def test_two_caches_hold_no_more_than_their_budget_together():
    budget = MemoryLimit(12 * BLOCK)
    with opened(budget) as one, opened(budget) as other:
        fill(one, 6)
        fill(other, 4)
        held = one.stats().bytes_allocated + other.stats().bytes_allocated
        assert budget.held == held <= budget.limit == 12 * BLOCK
        with pytest.raises(OutOfMemory):
            fill(other, 8)
        assert one.stats().memory_limit == other.stats().memory_limit == budget.limit
    assert budget.held == 0


def test_what_one_gives_back_the_other_may_have():
    budget = MemoryLimit(12 * BLOCK)
    with opened(budget) as one, opened(budget) as other:
        fill(one, 8)
        with pytest.raises(OutOfMemory):
            fill(other, 8)
        one.close()
        fill(other, 8)


def test_a_pool_and_a_cache_share_a_budget():
    budget = MemoryLimit(8 * BLOCK)
    pool = BlockPool(small_spec(), device="cpu", memory=budget, page_size=PAGE, layout="layer")
    with pool, opened(budget) as cache:
        pool.allocate(6)
        with pytest.raises(OutOfMemory):
            fill(cache, 4)
        pool.close()
        fill(cache, 4)


def test_a_limit_that_falls_takes_back_what_nobody_needs():
    budget = MemoryLimit(16 * BLOCK)
    with opened(budget) as cache:
        kept = fill(cache, 4)
        cache.release(fill(cache, 10))
        budget.set_limit(6 * BLOCK)
        assert budget.headroom == 0
        assert cache.give_back() == budget.held <= 6 * BLOCK
        assert cache.length(kept) == 4 * TOKENS
        with pytest.raises(LimitError):
            cache.resize(2 * BLOCK)
        budget.set_limit(16 * BLOCK)
        fill(cache, 10)


def test_a_pool_gives_back_free_slabs():
    budget = MemoryLimit(16 * BLOCK)
    pool = BlockPool(small_spec(), device="cpu", memory=budget, page_size=PAGE, layout="layer")
    with pool:
        pool.release(pool.allocate(12))
        budget.set_limit(BLOCK)
        assert pool.give_back() == budget.held <= BLOCK


def test_a_budget_takes_sizes_as_memory_does():
    assert MemoryLimit("1MiB").limit == 1 << 20
    with pytest.raises(ConfigError, match="memory 'lots'"):
        MemoryLimit("lots")
    with pytest.raises(ConfigError, match="memory"):
        opened(None)


def test_a_number_is_a_budget_of_its_own_and_a_budget_is_itself():
    shared = MemoryLimit("4MiB")
    assert budget_of(shared) is shared
    assert isinstance(budget_of(shared), Budget)
    assert budget_of("4MiB").limit == budget_of(4 << 20).limit == shared.limit == 4 << 20
