# SPDX-License-Identifier: Apache-2.0
"""vLLM's block tables with ours mixed in, on stand-ins that keep what they are told.

The stand-ins have the methods of vLLM 0.26 and 0.32; tests/vllm_plugin/test_names.py compares their
signatures with vLLM's.
"""

from __future__ import annotations

import numpy as np
import pytest
from test_memory import make_memory

from pyvattn.integrations.vllm.tables import TablesV1, TableV1, TableV2, adopt_table


class StandInV2:
    """``vllm.v1.worker.gpu.block_table.BlockTables``; ``tables`` are those of the first group."""

    def __init__(self):
        self.groups = []

    @property
    def tables(self):
        return self.groups[0]

    def append_block_ids(self, req_index, new_block_ids, overwrite):
        while len(self.groups) < len(new_block_ids):
            self.groups.append({})
        for table, ids in zip(self.groups, new_block_ids, strict=True):
            before = [] if overwrite else table[req_index]
            table[req_index] = before + list(ids)


class StandInV1:
    """``vllm.v1.worker.block_table.MultiGroupBlockTable``."""

    def __init__(self, groups=1):
        self.block_tables = [StandInTable() for _ in range(groups)]


class StandInTable:
    """``vllm.v1.worker.block_table.BlockTable``."""

    def __init__(self):
        self.num_blocks_per_row = np.zeros(4, dtype=np.int32)
        self.ids = np.zeros((4, 8), dtype=np.int32)

    def append_row(self, block_ids, row_idx):
        start = self.num_blocks_per_row[row_idx]
        self.num_blocks_per_row[row_idx] += len(block_ids)
        self.ids[row_idx, start : start + len(block_ids)] = block_ids

    def add_row(self, block_ids, row_idx):
        self.num_blocks_per_row[row_idx] = 0
        self.append_row(block_ids, row_idx)

    def clear_row(self, row_idx):
        self.ids[row_idx, : self.num_blocks_per_row[row_idx]] = 0
        self.num_blocks_per_row[row_idx] = 0

    def move_row(self, src, tgt):
        count = self.num_blocks_per_row[src]
        self.ids[tgt, :count] = self.ids[src, :count]
        self.num_blocks_per_row[tgt] = count

    def swap_row(self, src, tgt):
        self.num_blocks_per_row[[src, tgt]] = self.num_blocks_per_row[[tgt, src]]
        self.ids[[src, tgt]] = self.ids[[tgt, src]]


@pytest.fixture
def memory():
    memory, _ = make_memory()
    yield memory
    memory.close_all()


@pytest.fixture
def v2(memory):
    table = StandInV2()
    adopt_table(table, TableV2, memory)
    return table


@pytest.fixture
def v1(memory):
    tables = StandInV1()
    adopt_table(tables, TablesV1, memory)
    return tables


def blocks_behind(memory, ids):
    """vLLM's blocks that are mapped where virtual ids say."""
    rows = {id_ // memory.positions for id_ in ids}
    assert len(rows) == 1
    mapped = memory.rows.blocks(rows.pop())
    return [mapped[id_ % memory.positions] for id_ in ids]


def test_v2_kernels_read_rows_in_which_the_blocks_are_mapped(memory, v2):
    v2.append_block_ids(3, ([5, 2],), overwrite=True)
    v2.append_block_ids(3, ([7],), overwrite=False)
    memory.join()
    assert blocks_behind(memory, v2.tables[3]) == [5, 2, 7]
    assert memory.stats()["waited_seconds"] > 0


def test_v2_a_request_that_ended_leaves_its_row_to_one_with_its_prefix(memory, v2):
    v2.append_block_ids(0, ([1, 2, 3],), overwrite=True)
    memory.join()
    first = v2.tables[0][0] // memory.positions
    v2.end_request(0)
    mapped = memory.stats()["map_calls"]
    v2.append_block_ids(1, ([9],), overwrite=True)
    v2.append_block_ids(2, ([1, 2, 4],), overwrite=True)
    memory.join()
    assert v2.tables[2][0] // memory.positions == first
    assert memory.stats()["map_calls"] - mapped == 2  # 9 and 4


def test_v2_an_index_that_is_used_again_without_a_word_ends_the_request(memory, v2):
    v2.append_block_ids(0, ([1],), overwrite=True)
    v2.append_block_ids(0, ([2],), overwrite=True)
    memory.join()
    assert memory.stats()["open_rows"] == 1
    assert blocks_behind(memory, v2.tables[0]) == [2]


def test_v2_a_request_has_a_row_in_each_group_and_leaves_them_all(memory, v2):
    v2.append_block_ids(0, ([1, 2], [5, 3]), overwrite=True)
    v2.append_block_ids(0, ([], [4]), overwrite=False)
    memory.join()
    full, window = (table[0] for table in v2.groups)
    assert blocks_behind(memory, full) == [1, 2]
    assert blocks_behind(memory, window) == [5, 3, 4]
    assert memory.stats()["open_rows"] == 2
    v2.end_request(0)
    assert memory.stats()["open_rows"] == 0


def test_v2_nothing_is_mapped_for_null_blocks_in_front_of_a_window(memory, v2):
    v2.append_block_ids(0, ([1, 3, 5, 9], [0, 0, 0, 7]), overwrite=True)
    v2.append_block_ids(0, ([11], [13]), overwrite=False)
    memory.join()
    ids = v2.groups[1][0]
    assert ids[:3] == [0, 0, 0]  # row 0, where the null block is
    assert blocks_behind(memory, ids[3:]) == [7, 13]
    assert memory.stats()["map_calls"] == 7  # one for each block that is not null
    v2.end_request(0)
    # The same request again finds its rows by what they hold.
    v2.append_block_ids(1, ([1, 3, 5, 9, 11], [0, 0, 0, 7, 13]), overwrite=True)
    memory.join()
    assert v2.groups[1][1] == ids
    assert memory.stats()["map_calls"] == 7


def test_v2_a_block_that_left_a_window_goes_to_another_row(memory, v2):
    v2.append_block_ids(0, ([1], [2, 3]), overwrite=True)
    # Nobody says that 2 is behind the window of the first: the second simply has it.
    v2.append_block_ids(1, ([2], [4, 5]), overwrite=True)
    memory.join()
    assert blocks_behind(memory, v2.groups[0][1]) == [2]
    assert blocks_behind(memory, v2.groups[1][0]) == [2, 3]


def test_v1_requests_keep_their_rows_when_the_batch_is_condensed(memory, v1):
    table = v1.block_tables[0]
    table.add_row([1, 2], 0)
    table.add_row([3], 1)
    table.clear_row(0)
    table.move_row(1, 0)
    table.append_row([4], 0)
    memory.join()
    assert blocks_behind(memory, table.ids[0, :2].tolist()) == [3, 4]
    assert memory.stats()["open_rows"] == 1


def test_v1_requests_keep_their_rows_when_the_batch_is_reordered(memory, v1):
    table = v1.block_tables[0]
    table.add_row([1], 0)
    table.add_row([2], 1)
    table.swap_row(0, 1)
    table.append_row([3], 0)
    table.append_row([], 1)
    memory.join()
    assert blocks_behind(memory, table.ids[0, :2].tolist()) == [2, 3]
    assert blocks_behind(memory, table.ids[1, :1].tolist()) == [1]


@pytest.fixture
def computed(memory, monkeypatch):
    """The computed tokens of each request that gets a row."""
    noted = []
    opened = memory.open

    def note(blocks, tokens):
        noted.append(tokens)
        return opened(blocks, tokens)

    monkeypatch.setattr(memory, "open", note)
    return noted


def test_requests_get_the_computed_tokens_that_were_said_for_them(v1, v2, computed):
    table = v1.block_tables[0]
    with v2.adding([5, 0]):
        v2.append_block_ids(0, ([1],), overwrite=True)
        v2.append_block_ids(1, ([2],), overwrite=True)
        v2.append_block_ids(0, ([3],), overwrite=False)
    with v1.adding([7]):
        table.add_row([4], 0)
    with pytest.raises(RuntimeError, match="a request that was refused"), v1.adding([9]):
        raise RuntimeError("a request that was refused")
    table.add_row([5], 1)
    v2.append_block_ids(1, ([6],), overwrite=True)
    assert computed == [5, 0, 7, None, None]


def test_every_group_gets_the_computed_tokens_of_a_request(memory, v2, computed):
    v1 = StandInV1(groups=2)
    adopt_table(v1, TablesV1, memory)
    with v1.adding(iter([7])):
        for table in v1.block_tables:
            table.add_row([4], 0)
    with v2.adding([5]):
        v2.append_block_ids(0, ([1], [2]), overwrite=True)
    assert computed == [7, 7, 5, 5]


def test_a_table_can_be_told_of_new_memory(memory, v1):
    v1.block_tables[0].add_row([1], 0)
    other, _ = make_memory()
    adopt_table(v1, TablesV1, other)
    (table,) = v1.block_tables
    assert type(v1).__mro__.count(TablesV1) == 1
    assert type(table).__mro__.count(TableV1) == 1
    table.add_row([2], 0)
    other.join()
    assert blocks_behind(other, table.ids[0, :1].tolist()) == [2]
    other.close_all()
