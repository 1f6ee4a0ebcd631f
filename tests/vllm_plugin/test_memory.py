# SPDX-License-Identifier: Apache-2.0
"""The KV memory of a worker, on the host driver, with calls that can fail."""

from __future__ import annotations

import random

import pytest

from pyvattn import DriverError, SpecError, _native
from pyvattn.integrations.vllm.layout import Paging
from pyvattn.integrations.vllm.memory import RowMemory, Sizes

PAGE = 64 << 10
# 2 layers of 2 heads of 64 elements: a block of 64 tokens is a page of one arena.
SIZES = Sizes(
    layers=2,
    heads=2,
    head_size=64,
    dtype="bfloat16",
    block_size=64,
    blocks=20,
    rows=5,
    max_blocks=6,
)


def make_memory(*, sizes=SIZES, background=True):
    """A memory, and the adaptor that makes its driver calls fail."""
    faults = _native.FaultAdaptor(_native.make_driver("host", PAGE))
    checked = _native.CheckedAdaptor(faults)
    return RowMemory(sizes, Paging(PAGE, 2), checked, background=background), faults


@pytest.fixture(params=[True, False], ids=["background", "joined"])
def memory(request):
    memory, memory_faults = make_memory(background=request.param)
    memory.faults = memory_faults
    yield memory
    memory_faults.disarm()
    memory.close_all()


def page_of(memory, row, position):
    return memory.rows.arena(0)[row, position * PAGE : (position + 1) * PAGE]


def test_the_null_row_is_row_0_and_has_the_null_block_everywhere(memory):
    assert memory.rows.blocks(0) == [0] * memory.positions
    page_of(memory, 0, 3).fill_(7)
    assert (page_of(memory, 0, 5) == 7).all()
    assert memory.stats()["map_calls"] == 0


def test_a_prefix_that_two_requests_have_is_one_block(memory):
    first, second = memory.open([4, 5]), memory.open([4, 6])
    memory.join()
    page_of(memory, first, 0).fill_(1)
    page_of(memory, first, 1).fill_(2)
    assert (page_of(memory, second, 0) == 1).all()
    assert not page_of(memory, second, 1).any()


def test_a_row_that_has_the_prefix_is_taken_again_without_a_call(memory):
    row = memory.open([3, 4, 5])
    memory.join()
    memory.close(row)
    memory.reset_stats()
    assert memory.open([3, 4, 5]) == row
    memory.join()
    assert memory.stats()["map_calls"] == 0
    assert memory.stats()["blocks_placed"] == 3


def test_a_map_call_that_fails_once_is_made_again(memory):
    memory.faults.fail_nth(0)
    row = memory.open([1, 2])
    memory.join()
    page_of(memory, row, 1).fill_(1)
    assert memory.stats()["retries"] == 1


def test_a_map_call_that_keeps_failing_is_raised_before_the_step(memory, monkeypatch):
    join = memory.rows.join

    def fail():
        memory.faults.fail_nth(0)
        join()

    memory.faults.fail_nth(0)
    monkeypatch.setattr(memory.rows, "join", fail)
    row = memory.open([1, 2])
    with pytest.raises(DriverError, match="injected"):
        memory.join()
    # Nothing has changed: it can still be made.
    monkeypatch.setattr(memory.rows, "join", join)
    memory.faults.disarm()
    memory.join()
    page_of(memory, row, 1).fill_(1)
    assert (memory.stats()["open_rows"], memory.stats()["retries"]) == (1, 1)


def test_the_seconds_of_mapping_and_of_waiting_are_counted(memory):
    assert memory.stats()["map_seconds"] == memory.stats()["waited_seconds"] == 0
    memory.open([1, 2])
    memory.join()
    stats = memory.stats()
    assert 0 < stats["driver_seconds"] <= stats["map_seconds"]
    assert stats["waited_seconds"] > 0
    memory.join()
    assert memory.stats()["waited_seconds"] == stats["waited_seconds"], "nothing was staged"


def test_rows_hold_what_vllm_says_under_random_requests(memory):
    draw = random.Random(5)
    live = {}
    for _ in range(300):
        if live and (len(live) == 4 or draw.random() < 0.3):
            row = draw.choice(sorted(live))
            memory.close(row)
            del live[row]
        elif live and draw.random() < 0.4:
            row = draw.choice(sorted(live))
            more = [draw.randrange(1, 20) for _ in range(draw.randrange(3))]
            more = more[: memory.positions - len(live[row])]
            memory.extend(row, more)
            live[row] += more
        else:
            blocks = [draw.randrange(1, 20) for _ in range(draw.randrange(1, 5))]
            live[memory.open(blocks)] = blocks
        memory.join()
        assert 0 not in live
        for row, blocks in live.items():
            assert memory.rows.blocks(row) == blocks
    for block in range(20):
        for row, blocks in live.items():
            for position, mapped in enumerate(blocks):
                if mapped == block:
                    page_of(memory, row, position).fill_(block + 1)
        for row, blocks in live.items():
            for position, mapped in enumerate(blocks):
                if mapped == block:
                    assert (page_of(memory, row, position) == block + 1).all()


def test_rows_that_need_too_many_addresses_name_vllms_options():
    from dataclasses import replace

    with pytest.raises(SpecError, match="--max-num-seqs, --max-model-len or pyvattn's option rows"):
        make_memory(sizes=replace(SIZES, rows=1 << 20, max_blocks=1 << 20))


def test_behind_a_guarded_row_lies_the_null_block_until_the_row_grows_there(memory):
    with memory.guarded(65):  # two blocks
        row, whole = memory.open([4]), memory.open([5, 6, 7, 8, 9, 10])
        memory.join()
        assert memory.rows.blocks(row) == [4, 0, 0]
        assert memory.rows.blocks(whole) == [5, 6, 7, 8, 9, 10]  # it ends where addresses do
        memory.extend(row, [11, 12])
        memory.join()
        assert memory.rows.blocks(row) == [4, 11, 12, 0, 0]
    page_of(memory, row, 2).fill_(3)
    page_of(memory, row, 4).fill_(9)
    assert (page_of(memory, row, 2) == 3).all()
    assert (page_of(memory, 0, 0) == 9).all()
    plain = memory.open([13])
    memory.extend(row, [14])
    memory.extend(plain, [15])
    memory.close(row)
    again = memory.open([4, 11])
    memory.extend(again, [12])
    memory.join()
    assert memory.rows.blocks(plain) == [13, 15]
    assert memory.rows.blocks(again) == [4, 11, 12]
