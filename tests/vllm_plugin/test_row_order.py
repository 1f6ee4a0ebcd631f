# SPDX-License-Identifier: Apache-2.0
"""Which blocks to take for a request, so that its row has them mapped already."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from pyvattn.integrations.vllm.row_order import RowOrder


class Blocks:
    """The free blocks, those that were freed first in front, and the order under test.

    ``spare``: how many more than are needed may be evicted.
    """

    def __init__(self, blocks, rows=6, spare=0):
        self.free = list(range(blocks))
        self.order = RowOrder(rows, self.free.__contains__)
        self.spare = spare

    def take(self, request, count, hits=()):
        """Give a request ``count`` more blocks than its hits, and return them."""
        hits = list(hits)
        begins = self.order.length(request) == 0
        queue = [block for block in self.free if block not in hits]
        oldest, later = queue[:count], queue[count : count + self.spare]
        wanted = self.order.choose(request, hits, count, len(hits) + count, oldest, later)
        chosen = {block for block in wanted if block is not None}
        rest = iter([block for block in oldest if block not in chosen])
        taken = [next(rest) if block is None else block for block in wanted]
        assert len({*hits, *taken}) == len(hits) + count
        self.free[:] = [block for block in queue if block not in taken]
        if begins:
            self.order.begin(request, hits + taken)
        else:
            self.order.extend(request, taken)
        return taken

    def end(self, request, blocks):
        self.order.end(request, [True] * len(blocks))
        self.free += reversed(blocks)


def test_a_row_that_is_evicted_comes_back_in_its_own_order():
    blocks = Blocks(8)
    first, second = blocks.take("a", 4), blocks.take("b", 4)
    blocks.end("a", first)
    blocks.end("b", second)
    assert blocks.free[:4] == first[::-1]
    assert blocks.take("c", 4) == first
    assert blocks.take("d", 4) == second


def test_only_what_would_be_evicted_anyway_is_taken():
    blocks = Blocks(6)
    first, second = blocks.take("a", 2), blocks.take("b", 4)
    blocks.end("a", first)
    blocks.end("b", second)
    # The row of "b" would fit best, but the first half of it is evicted later.
    assert set(blocks.take("c", 4)) == {*first, *second[2:]}
    assert set(blocks.free) == set(second[:2])


def test_the_rest_of_a_request_may_go_with_it_where_there_is_room_to_spare():
    blocks = Blocks(8, spare=4)
    first, second = blocks.take("a", 4), blocks.take("b", 4)
    blocks.end("a", first)
    blocks.end("b", second)
    assert blocks.take("c", 2) == first[:2]


def test_growth_takes_what_lies_behind_in_the_row():
    blocks = Blocks(8, spare=5)
    first, second = blocks.take("a", 5), blocks.take("b", 3)
    blocks.end("a", first)
    blocks.end("b", second)
    assert blocks.take("c", 2) == first[:2]
    blocks.spare = 0
    assert [blocks.take("c", 1) for _ in range(3)] == [[block] for block in first[2:]]


def test_hits_are_never_handed_out_again():
    blocks = Blocks(4, rows=1)
    first = blocks.take("a", 4)
    blocks.end("a", first)
    # Its first block lies at the second place of the row from here on.
    blocks.order.begin("b", [first[1], first[0]])
    blocks.order.end("b", [False, False])
    blocks.take("c", 3, hits=first[:1])


def test_a_block_that_a_row_has_twice_is_taken_once():
    blocks = Blocks(4, rows=1)
    first = blocks.take("a", 4)
    blocks.end("a", first)
    # The row has the last two at its begin and at its end from here on.
    blocks.order.begin("b", first[2:])
    blocks.order.end("b", [True, True])
    assert blocks.take("c", 4)[:2] == first[2:]


def test_more_requests_than_rows_are_served_all_the_same():
    blocks = Blocks(6, rows=1)
    first, second = blocks.take("a", 2), blocks.take("b", 2)
    blocks.end("b", second)
    blocks.end("a", first)
    assert len(blocks.take("c", 2)) == 2


@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed: make test-vllm")
@pytest.mark.parametrize(("workload", "at_most"), [("apart", 0.8), ("chats", 0.8), ("prompts", 1)])
def test_fewer_maps_for_the_same_prefix_cache_under_vllms_own_manager(workload, at_most):
    from order_simulation import compare

    from pyvattn.traces import synthetic_trace

    trace = synthetic_trace(2000, seed=0)
    lengths = [(each.prompt, each.generated) for each in trace.requests]
    ways = ("plain", "ordered", "late")
    stock, ours, late = compare(workload, lengths, running=16, requests=160, factor=1.5, ways=ways)
    # Those with the same system prompt find a row that begins with it in either order.
    assert ours.maps < at_most * stock.maps
    assert ours.hit_rate >= 0.99 * stock.hit_rate
    # The worker alone does it with some copies, and leaves the cache as it is.
    assert late.maps < min(0.7 * stock.maps, ours.maps)
    assert 0 < late.copies < stock.maps
    assert late.hit_rate == stock.hit_rate
    assert (stock.hit_rate > 0.2) == (workload != "apart")
