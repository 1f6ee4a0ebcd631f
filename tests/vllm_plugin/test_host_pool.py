# SPDX-License-Identifier: Apache-2.0
"""Host memory in pieces: nothing is refused that there is room for, and no byte has two owners."""

from __future__ import annotations

import random

import pytest

from pyvattn import OutOfMemory
from pyvattn.integrations.vllm.host_pool import HostPool

torch = pytest.importorskip("torch", reason="host memory is torch's")

CELL = 64


def whole(pool, piece, size):
    return list(pool.views(piece, 0, size))


def test_a_piece_is_one_run_where_there_is_one():
    pool = HostPool(8, CELL, pinned=False)
    pieces = [pool.take(2 * CELL) for _ in range(4)]
    pool.give(pieces[0])
    pool.give(pieces[2])
    pool.give(pieces[3])
    # The smallest that is enough is left for the next that needs no more.
    assert [len(each) for each in whole(pool, pool.take(2 * CELL), 2 * CELL)] == [2 * CELL]
    assert [len(each) for each in whole(pool, pool.take(3 * CELL + 1), 4 * CELL)] == [4 * CELL]


def test_runs_that_are_given_back_are_one_again():
    pool = HostPool(4, CELL, pinned=False)
    pieces = [pool.take(CELL) for _ in range(4)]
    for index in (1, 3, 0, 2):
        pool.give(pieces[index])
    (view,) = whole(pool, pool.take(4 * CELL), 4 * CELL)
    assert len(view) == 4 * CELL


def test_part_of_a_piece_over_its_runs():
    pool = HostPool(7, CELL, pinned=False)
    # Of segments of 4, 2 and 1 cells.
    piece = pool.take(7 * CELL)
    assert [len(each) for each in whole(pool, piece, 7 * CELL)] == [4 * CELL, 2 * CELL, CELL]
    assert [len(each) for each in pool.views(piece, 3 * CELL + 5, 6 * CELL + 9)] == [
        CELL - 5,
        2 * CELL,
        9,
    ]
    assert list(pool.views(piece, 5, 5)) == []


def test_more_than_is_free_is_refused_and_takes_nothing():
    pool = HostPool(5, CELL, pinned=False)
    pool.take(3 * CELL)
    with pytest.raises(OutOfMemory, match="128 B are free") as caught:
        pool.take(2 * CELL + 1)
    assert caught.value.requested == 2 * CELL + 1
    assert pool.free == 2


@pytest.mark.parametrize("seed", range(5))
def test_pieces_keep_what_is_written_to_them(seed):
    draw = random.Random(seed)
    cells = draw.randrange(5, 60)
    pool = HostPool(cells, CELL, pinned=False)
    held = {}
    for stamp in range(300):
        if held and draw.random() < 0.45:
            number = draw.choice(list(held))
            piece, size = held.pop(number)
            assert all((view == number % 251).all() for view in whole(pool, piece, size))
            pool.give(piece)
        size = draw.randrange(1, 12 * CELL)
        taken = sum(-(-size // CELL) for _, size in held.values())
        if -(-size // CELL) <= cells - taken:
            piece = pool.take(size)
            views = whole(pool, piece, size)
            assert sum(map(len, views)) == size
            for view in views:
                view.fill_(stamp % 251)
            held[stamp] = piece, size
    for piece, _ in held.values():
        pool.give(piece)
    assert pool.free == cells


def test_a_host_without_such_memory_is_named_with_the_option(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("cannot pin")

    monkeypatch.setattr(torch, "empty", fail)
    with pytest.raises(OutOfMemory, match=r"no pinned host memory .*: lower pyvattn's option swap"):
        HostPool(4, CELL, pinned=True)
