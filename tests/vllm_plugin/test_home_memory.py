# SPDX-License-Identifier: Apache-2.0
"""Each block at the place of vLLM's id and in rows: the same bytes, whatever requests do."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from test_memory import PAGE, SIZES

from pyvattn import _native
from pyvattn.integrations.vllm.home_memory import HomeRowMemory
from pyvattn.integrations.vllm.layout import Paging

# Blocks that are a page of one arena, and a page of each of two. Rows take 6 blocks of 20.
ONE_ARENA = (SIZES, Paging(PAGE, 2))
TWO_ARENAS = (replace(SIZES, block_size=128), Paging(PAGE, 1))
FEW_BLOCKS = (replace(SIZES, blocks=4), Paging(PAGE, 2))


@pytest.fixture(params=[ONE_ARENA, TWO_ARENAS, FEW_BLOCKS], ids=["one", "two", "few"])
def memory(request):
    driver = _native.CheckedAdaptor(_native.make_driver("host", PAGE))
    memory = HomeRowMemory(*request.param, driver, background=True)
    yield memory
    memory.close_all()


def pages(memory, arena=0):
    """The virtual blocks of an arena, as bytes."""
    return memory.arena(arena).view(-1, PAGE)


def write(memory, id_, value):
    for index in range(memory.pool.geometry.arenas):
        pages(memory, index)[id_].fill_(value + index)


def holds(memory, place, value):
    arenas = range(memory.pool.geometry.arenas)
    return all((pages(memory, index)[place] == value + index).all() for index in arenas)


def test_what_is_written_by_block_id_is_read_in_a_row_and_back(memory):
    for id_ in range(memory.sizes.blocks):
        write(memory, id_, id_ + 1)
    row = memory.open([3, 1, 2])
    memory.join()
    first = row * memory.positions
    assert [holds(memory, first + i, value) for i, value in enumerate([4, 2, 3])] == [True] * 3
    write(memory, first + 1, 100)
    assert holds(memory, 1, 100)


def test_a_block_that_no_request_has_is_there(memory):
    row = memory.open([3])
    memory.join()
    write(memory, row * memory.positions, 7)
    memory.close(row)
    assert holds(memory, 3, 7)
    write(memory, 3, 8)
    again = memory.open([2, 3])
    memory.join()
    assert holds(memory, again * memory.positions + 1, 8)


def test_behind_the_last_block_there_is_the_null_block(memory):
    write(memory, 0, 9)
    rows = -(-memory.sizes.blocks // memory.positions)
    assert all(
        holds(memory, place, 9) for place in range(memory.sizes.blocks, rows * memory.positions)
    )
    # Requests have as many rows as without: all but the one of the null block.
    assert memory.pool.geometry.slots == rows + memory.sizes.rows - 1
    opened = {memory.open([1]) for _ in range(memory.sizes.rows - 1)}
    assert opened == set(range(rows, rows + memory.sizes.rows - 1))


def test_the_second_mapping_is_counted_and_made_once(memory):
    arenas, positions = memory.pool.geometry.arenas, memory.positions
    rows = -(-memory.sizes.blocks // positions)
    # Blocks that follow each other in memory are one call.
    mapped = memory.stats()["home_map_calls"]
    assert rows * arenas <= mapped <= rows * positions * arenas
    assert memory.stats()["home_driver_seconds"] > 0
    assert (memory.stats()["map_calls"], memory.stats()["open_rows"]) == (0, 0)
    memory.open([3, 1])
    memory.join()
    assert memory.stats()["home_map_calls"] == mapped
    assert memory.stats()["map_calls"] == 2 * arenas


def test_rows_and_places_agree_under_random_requests(memory):
    draw = random.Random(3)
    live = {}
    count = memory.sizes.blocks
    expected = dict.fromkeys(range(count), 0)
    for value in range(1, 100):
        if live and (len(live) == memory.sizes.rows - 1 or draw.random() < 0.3):
            row = draw.choice(sorted(live))
            memory.close(row)
            del live[row]
        else:
            ids = [draw.randrange(1, count) for _ in range(draw.randrange(1, 4))]
            live[memory.open(ids)] = ids
        memory.join()
        id_ = draw.randrange(1, count)
        write(memory, id_, value)
        expected[id_] = value
        for row, ids in live.items():
            for position, id_ in enumerate(ids):
                place = row * memory.positions + position
                assert expected[id_] == 0 or holds(memory, place, expected[id_])
