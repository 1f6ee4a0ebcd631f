# SPDX-License-Identifier: Apache-2.0
"""Weights that are leased before they are loaded: out of the amount that all share."""

from __future__ import annotations

import pytest
from test_shared_memory import BLOCK, PAGE, PATIENCE, TOKENS, lease, only_ledger, opened, spec

from pyvattn import BlockPool, BusyError, ConfigError, LedgerFull, OutOfMemory
from pyvattn.prefix import PrefixIndex


def test_weights_are_taken_out_of_what_all_share(runtime):
    with lease() as one, opened(one) as cache:
        with lease(weights=10 * BLOCK) as two:
            assert (two.weights, two.held, two.leased) == (10 * BLOCK,) * 3
            assert cache.can_admit(6 * TOKENS)
            assert not cache.can_admit(7 * TOKENS)
            with pytest.raises(OutOfMemory):
                cache.admit(7 * TOKENS)
            (other,) = (each for each in only_ledger().members if each.guarantee)
            assert (other.used, other.guarantee) == (10 * BLOCK, 10 * BLOCK)
        assert one.wait_for(16 * BLOCK, PATIENCE)


def test_an_idle_neighbour_makes_room_before_they_are_loaded(runtime):
    with lease() as one, opened(one, background=True) as cache:
        cache.release(cache.admit(14 * TOKENS))
        kept = cache.admit(TOKENS)
        with lease(weights=12 * BLOCK) as two:
            assert two.held == 12 * BLOCK
            assert one.held + two.held <= 16 * BLOCK
        assert cache.length(kept) == TOKENS


def test_what_neighbours_cannot_spare_is_a_typed_error_and_the_ledger_is_left(runtime):
    with lease() as one, opened(one) as cache:
        cache.admit(8 * TOKENS)
        with pytest.raises(OutOfMemory, match=r"weights of .*pyvattn top") as failed:
            lease(weights=10 * BLOCK, timeout=0)
        assert failed.value.requested == 10 * BLOCK
        assert [each.name for each in only_ledger().members] == [one.name]
        # Nothing of it stays leased, and its neighbour goes on.
        cache.admit(8 * TOKENS)


def test_weights_and_guarantees_together_stay_within_the_budget(runtime):
    with lease(guarantee=4 * BLOCK, weights=4 * BLOCK) as one:
        assert one.leased == 8 * BLOCK
        with pytest.raises(LedgerFull, match="guarantee"):
            lease(guarantee=4 * BLOCK, weights=5 * BLOCK)
        with lease(guarantee=4 * BLOCK, weights=4 * BLOCK):
            assert only_ledger().free == 0


def test_caches_beside_weights_reach_what_is_left(runtime):
    with lease(weights=6 * BLOCK) as one, opened(one) as cache:
        assert one.reach == 10 * BLOCK
        cache.admit(10 * TOKENS)
        assert not cache.can_admit(1)
        assert one.held == 16 * BLOCK


def test_a_neighbour_that_asks_gets_prefixes_but_no_weights(runtime):
    with lease(weights=10 * BLOCK) as one, opened(one) as cache:
        index = PrefixIndex(cache)
        prompt = list(range(5 * TOKENS))
        slot = index.admit(prompt).slot
        index.publish(slot, prompt)
        index.release(slot)
        assert index.kept_pages()
        with lease() as two:
            pool = BlockPool(spec(), device="cpu", memory=two, page_size=PAGE, layout="layer")
            with pool:
                for _ in range(int(PATIENCE / 0.05)):
                    # As an engine does at each step: its limit falls by what it can spare.
                    cache.give_back()
                    if two.wait_for(6 * BLOCK, 0.05):
                        break
                assert not index.kept_pages()
                assert len(pool.allocate(6)) == 6
                assert one.held == 10 * BLOCK == one.weights


def test_they_come_back_beside_what_is_held_meanwhile(runtime):
    with lease(weights=10 * BLOCK) as one, opened(one) as cache, lease() as two:
        with opened(two, background=True) as other:
            one.return_weights()
            # Out of what is guaranteed for the weights, and an idle neighbour has all the rest.
            cache.admit(TOKENS)
            other.release(other.admit(6 * TOKENS))
            assert two.held == 6 * BLOCK
            one.claim_weights(PATIENCE)
        assert (one.weights, one.held) == (10 * BLOCK, 11 * BLOCK)


def test_weights_stay_leased_where_closing_is_refused(runtime):
    with lease(weights=6 * BLOCK) as one, opened(one) as cache:
        cache.admit(TOKENS)
        with pytest.raises(BusyError):
            one.close()
        assert one.weights == 6 * BLOCK
        assert one.held > one.weights


def test_one_that_sleeps_leaves_its_weights_to_others_and_claims_them_before_it_wakes(runtime):
    with lease(weights=12 * BLOCK) as one, lease() as two:
        assert not two.wait_for(5 * BLOCK, 0)
        one.return_weights()
        assert (one.weights, one.weights_size, one.held) == (0, 12 * BLOCK, 0)
        # Guaranteed still, until its limit says otherwise.
        assert not two.wait_for(5 * BLOCK, 0)
        one.set_limit(BLOCK)
        with opened(two) as cache:
            slot = cache.admit(14 * TOKENS)
            one.set_limit(16 * BLOCK)
            with pytest.raises(OutOfMemory, match=r"weights of .* neighbours hold the rest"):
                one.claim_weights(timeout=0)
            assert (one.weights, one.held) == (0, 0)
            cache.release(slot)
            cache.give_back()
            one.claim_weights(PATIENCE)
            assert one.weights == one.held == 12 * BLOCK
            one.claim_weights()
            assert one.held == 12 * BLOCK, "claimed once"
            assert one.held + two.held <= 16 * BLOCK


@pytest.mark.parametrize("bad", [{"weights": -1}, {"weights": "much"}, {"timeout": -1}])
def test_bad_weights_are_refused(runtime, bad):
    with pytest.raises(ConfigError):
        lease(**bad)
