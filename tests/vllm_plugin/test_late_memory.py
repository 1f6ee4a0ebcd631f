# SPDX-License-Identifier: Apache-2.0
"""Fresh ids get the blocks that rows have: contents stay with their ids, and less is mapped."""

from __future__ import annotations

from dataclasses import replace
from time import monotonic

import pytest
from test_memory import PAGE, SIZES

from pyvattn import _native
from pyvattn.integrations.vllm.late_memory import LateRowMemory
from pyvattn.integrations.vllm.layout import Paging

SECONDS = 30  # until a test gives up

# Blocks that are a page of one arena, and a page of each of two.
ONE_ARENA = (SIZES, Paging(PAGE, 2))
TWO_ARENAS = (replace(SIZES, block_size=128), Paging(PAGE, 1))


def make_memory(sizes=SIZES, paging=ONE_ARENA[1], *, background=True):
    """A memory, and the adaptor that makes its driver calls fail."""
    faults = _native.FaultAdaptor(_native.make_driver("host", PAGE))
    checked = _native.CheckedAdaptor(faults)
    return LateRowMemory(sizes, paging, checked, background=background), faults


@pytest.fixture
def memory():
    memory, _ = make_memory()
    yield memory
    memory.close_all()


def places(memory, row, position):
    """The page of each arena at a row's position."""
    arenas = range(memory.pool.geometry.arenas)
    return [
        memory.rows.arena(index)[row, position * PAGE : (position + 1) * PAGE] for index in arenas
    ]


def write(memory, row, position, value):
    for index, page in enumerate(places(memory, row, position)):
        page.fill_(value + index)


def holds(memory, row, position, value):
    pages = places(memory, row, position)
    return all((page == value + index).all() for index, page in enumerate(pages))


def serve(memory, ids, value, computed=0):
    """A request that writes ``value`` into its fresh blocks, and ends."""
    row = memory.open(ids, computed)
    memory.join()
    for position in range(-(-computed // memory.sizes.block_size), len(ids)):
        write(memory, row, position, value + position)
    memory.close(row)
    memory.join()
    return row


def use_up_rows(memory):
    """Requests in all rows that have had none; return their rows."""
    rows = [memory.open([block], computed=0) for block in range(15, 18)]
    memory.join()
    return rows


def test_what_is_cached_stays_in_its_row_while_rows_are_left(memory):
    first = serve(memory, [1, 2, 3, 4], 10)
    serve(memory, [5, 6, 7, 8], 20)
    memory.reset_stats()
    row = memory.open([1, 2, 3, 4], computed=4 * 64)
    memory.join()
    assert row == first
    assert (memory.stats()["map_calls"], memory.stats()["pages_copied"]) == (0, 0)


def test_fresh_ids_get_what_a_closed_row_has_mapped_without_a_call(memory):
    first = serve(memory, [1, 2, 3], 10)
    use_up_rows(memory)
    memory.reset_stats()
    assert serve(memory, [7, 8, 9], 20) == first
    stats = memory.stats()
    assert (stats["map_calls"], stats["pages_copied"]) == (0, 3)
    row = memory.open([1, 2, 3], computed=3 * 64)
    memory.join()
    assert all(holds(memory, row, position, 10 + position) for position in range(3))


def test_the_rest_is_mapped_while_contents_are_copied(memory, monkeypatch):
    serve(memory, [1, 2, 3], 10)
    use_up_rows(memory)
    memory.reset_stats()
    copy = memory._homes.copy

    def copy_late(moves):
        end = monotonic() + SECONDS
        while not memory.stats()["map_calls"]:
            assert monotonic() < end, "nothing is mapped before contents are copied"
        copy(moves)

    monkeypatch.setattr(memory._homes, "copy", copy_late)
    row = memory.open([7, 8, 9, 10], computed=0)
    memory.join()
    assert memory.stats()["pages_copied"] == 3
    write(memory, row, 3, 5)
    assert holds(memory, row, 3, 5)


def test_nothing_is_copied_of_ids_that_are_fresh_themselves(memory):
    serve(memory, [1, 2, 3], 10)
    memory.reset_stats()
    serve(memory, [3, 1, 2], 20)
    assert memory.stats()["pages_copied"] == 0
    assert memory.stats()["map_calls"] == 0


def test_blocks_with_computed_tokens_keep_what_they_hold(memory):
    serve(memory, [1, 2, 3], 10)
    use_up_rows(memory)
    serve(memory, [4, 5], 20)
    # The last block that was found is not whole.
    row = memory.open([4, 5, 6], computed=64 + 1)
    memory.join()
    assert holds(memory, row, 0, 20)
    assert holds(memory, row, 1, 21)


def test_without_a_word_every_block_may_hold_tokens(memory):
    serve(memory, [1, 2, 3], 10)
    use_up_rows(memory)
    serve(memory, [4, 5], 20)
    row = memory.open([5, 4])
    memory.join()
    assert holds(memory, row, 0, 21)
    assert holds(memory, row, 1, 20)
    assert memory.stats()["pages_copied"] == 2  # of the first three, when 4 and 5 took theirs


def test_a_request_grows_into_what_its_row_has_behind(memory):
    first = serve(memory, [1, 2, 3], 10)
    others = use_up_rows(memory)
    row = memory.open([7], computed=0)
    memory.join()
    memory.reset_stats()
    memory.extend(row, [8, 9])
    memory.join()
    assert row == first
    assert (memory.stats()["map_calls"], memory.stats()["pages_copied"]) == (0, 2)
    memory.close(others[0])
    cached = memory.open([2, 3], computed=2 * 64)
    memory.join()
    assert holds(memory, cached, 0, 11)
    assert holds(memory, cached, 1, 12)


def test_a_block_that_another_request_was_told_to_share_stays_where_it_is():
    memory, _ = make_memory(replace(SIZES, rows=3))
    serve(memory, [1, 2, 3], 10)
    serve(memory, [9], 20)
    grown = memory.open([4, 7], computed=0)
    # vLLM schedules the growth first, and the worker hears of the one that shares it first.
    sharing = memory.open([4, 7, 5, 6], computed=3 * 64)
    memory.extend(grown, [5])
    memory.join()
    write(memory, grown, 2, 30)
    assert holds(memory, sharing, 2, 30)
    memory.close_all()


def test_what_moves_twice_for_one_request_is_copied_once_from_where_it_was(memory):
    serve(memory, [1, 2, 3], 10)
    memory.reset_stats()
    # The page that 1 gets for its own, that of 3, lies further on in the row.
    serve(memory, [3, 7, 8], 20)
    assert memory.stats()["pages_copied"] == 2
    row = memory.open([1, 2], computed=2 * 64)
    memory.join()
    assert holds(memory, row, 0, 10)
    assert holds(memory, row, 1, 11)


def test_the_null_block_stays_where_it_is(memory):
    serve(memory, [1, 2], 10)
    row = memory.open([0, 3], computed=0)
    assert memory.rows.blocks(row)[0] == 0
    assert memory.rows.blocks(0) == [0] * memory.positions


def test_rows_of_blocks_are_no_requests(memory):
    assert memory.stats()["open_rows"] == 0
    rows = {memory.open([block], 0) for block in range(1, SIZES.rows)}
    assert len(rows) == SIZES.rows - 1
    assert memory.stats()["open_rows"] == SIZES.rows - 1


def test_a_guard_takes_the_place_of_what_a_row_had_behind(memory):
    serve(memory, [1, 2, 3, 4], 10)
    use_up_rows(memory)
    with memory.guarded(64):
        row = memory.open([5], computed=0)
        memory.extend(row, [6])
        memory.join()
        write(memory, row, 1, 40)
    memory.extend(row, [7])
    memory.join()
    assert memory.stats()["pages_copied"] == 1
    write(memory, row, 2, 50)
    memory.close(row)
    row = memory.open([1, 2, 3, 4, 5, 6], computed=6 * 64)
    memory.join()
    assert all(holds(memory, row, position, 10 + position) for position in range(4))
    assert holds(memory, row, 5, 40)
