# SPDX-License-Identifier: Apache-2.0
"""What the scheduler's half of the swap connector knows, step by step."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pyvattn.integrations.vllm.swap_books import Load, SwapBooks


def step(*, new=(), cached=(), preempted=()):
    """A step of vLLM's: requests with the tokens that they have and those that it runs."""
    return SimpleNamespace(
        scheduled_new_reqs=[
            SimpleNamespace(req_id=name, num_computed_tokens=computed) for name, computed, _ in new
        ],
        scheduled_cached_reqs=SimpleNamespace(
            req_ids=[name for name, *_ in cached],
            num_computed_tokens=[computed for _, computed, _ in cached],
        ),
        num_scheduled_tokens={name: count for name, _, count in (*new, *cached)},
        total_num_scheduled_tokens=sum(count for *_, count in (*new, *cached)),
        preempted_req_ids=set(preempted),
    )


@pytest.fixture
def books():
    """Of 8 blocks of 16 tokens; "a" has run 40 tokens of its prompt and then one more."""
    books = SwapBooks(16, 8)
    assert books.orders(step(new=[("a", 0, 40)])).saves == []
    assert books.orders(step(cached=[("a", 40, 1)])).saves == []
    return books


def test_a_preempted_request_is_saved_and_loaded_beyond_what_the_prefix_cache_has(books):
    assert books.orders(step(preempted=["a"])).saves == [("a", 41)]
    assert books.matched("a", 42, 16) == 25
    books.allocated("a", [7, 8, 9], 25)
    assert books.orders(step()).loads == [Load("a", 16, 41, (8, 9))]
    # Once.
    assert books.matched("a", 42, 0) == 0
    assert books.orders(step()).loads == []


def test_rejected_drafts_and_the_newest_token_are_run(books):
    books.orders(step(cached=[("a", 41, 5)]))
    books.orders(step(preempted=["a"]))
    # It had 46 tokens' KV, of which four were of drafts that were rejected.
    assert books.matched("a", 43, 0) == 42


def test_what_the_prefix_cache_has_whole_is_let_go_of(books):
    books.orders(step(preempted=["a"]))
    assert books.matched("a", 42, 48) == 0
    books.allocated("a", [7, 8, 9], 0)
    assert books.orders(step()).drops == ["a"]


def test_it_comes_back_in_the_next_step_whether_or_not_workers_have_said_a_word(books):
    books.orders(step(preempted=["a"]))
    assert books.matched("a", 42, 0) == 41


def test_what_was_not_saved_is_computed_anew(books):
    books.orders(step(preempted=["a"]))
    books.lost(["a"])
    assert books.matched("a", 42, 0) == 0
    books.allocated("a", [7, 8, 9], 0)
    # Of several workers one may have it.
    assert books.orders(step()).drops == ["a"]


def test_word_that_comes_when_it_is_loaded_already_changes_nothing(books):
    books.orders(step(preempted=["a"]))
    assert books.matched("a", 42, 0) == 41
    books.allocated("a", [7, 8, 9], 41)
    books.lost(["a"])
    orders = books.orders(step())
    assert (len(orders.loads), orders.drops) == (1, [])


def leaves(books, name, tokens):
    """Have a request run so many tokens and be preempted; return what is ordered then."""
    books.orders(step(new=[(name, 0, tokens)]))
    return books.orders(step(preempted=[name]))


def back(books, name, tokens):
    books.allocated(name, list(range(9)), books.matched(name, tokens + 1, 0))


def ends(books, name, tokens):
    books.end(name)


def lost(books, name, tokens):
    books.lost([name])


@pytest.mark.parametrize("go", [back, ends, lost])
def test_no_more_is_saved_than_there_is_room_for(books, go):
    books.orders(step(preempted=["a"]))
    assert leaves(books, "b", 5 * 16).saves == [("b", 80)]
    orders = leaves(books, "c", 1)
    assert (orders.saves, orders.refused) == ([], 1)
    assert books.matched("c", 2, 0) == 0
    go(books, "a", 41)
    orders = leaves(books, "d", 3 * 16)
    assert (orders.saves, orders.refused) == ([("d", 48)], 0)
    assert leaves(books, "e", 1).refused == 1


def test_what_is_cheaper_to_compute_is_not_saved(books):
    orders = books.orders(step(preempted=["a"]), copying_is_cheaper=False)
    assert (orders.saves, orders.cheaper, orders.refused) == ([], 1, 0)
    assert books.matched("a", 42, 0) == 0


def test_what_the_last_step_left_out_may_have_no_row_any_more(books):
    books.orders(step(new=[("b", 0, 20)]))
    assert books.orders(step(preempted=["a"])).saves == []


def test_workers_are_told_how_many_tokens_a_step_runs(books):
    assert books.orders(step(new=[("b", 0, 20)], cached=[("a", 41, 1)])).tokens == 21


def test_a_request_that_ends_leaves_nothing(books):
    books.orders(step(preempted=["a"]))
    books.end("a")
    assert books.matched("a", 42, 0) == 0
    assert books.orders(step()).drops == ["a"]
    books.end("a")
    assert books.orders(step()).drops == []


def test_what_never_ran_or_runs_again_at_once_is_not_saved(books):
    assert books.orders(step(preempted=["b"])).saves == []
    assert books.orders(step(cached=[("a", 0, 41)], preempted=["a"])).saves == []
    assert books.orders(step(preempted=["a"])).saves == [("a", 41)]


def test_after_a_reset_nothing_from_before_comes_back(books):
    books.orders(step(new=[("b", 0, 20)], preempted=["a"]))
    books.reset()
    assert books.matched("a", 42, 0) == 0
    orders = books.orders(step(preempted=["b"]))
    assert (orders.saves, orders.drops) == ([], ["a"])
