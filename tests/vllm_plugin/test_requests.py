# SPDX-License-Identifier: Apache-2.0
"""Requests at places of vLLM's block table, and the virtual ids that kernels read."""

from __future__ import annotations

import pytest

from pyvattn import RowError
from pyvattn.integrations.vllm.requests import RequestRows


class Memory:
    """Rows handed out in order; says what was done."""

    positions = 100
    block_size = 16
    reads_by_table = True

    def __init__(self):
        self.done = []
        self.next = 1

    def open(self, blocks, computed=None):
        self.done.append(("open", blocks))
        self.computed = computed
        self.next += 1
        return self.next - 1

    def extend(self, row, blocks):
        self.done.append(("extend", row, blocks))

    def close(self, row):
        self.done.append(("close", row))


@pytest.fixture
def memory():
    return Memory()


@pytest.fixture
def requests(memory):
    return RequestRows(memory)


def test_ids_are_positions_of_the_row_whatever_blocks_they_stand_for(memory, requests):
    assert requests.open(0, [7, 3]) == [100, 101]
    assert requests.extend(0, [9]) == [102]
    assert requests.open(5, [7]) == [200]
    assert memory.done == [("open", [7, 3]), ("extend", 1, [9]), ("open", [7])]


def test_null_blocks_in_front_of_a_window_are_read_in_row_0_and_mapped_nowhere(memory, requests):
    assert requests.open(0, [0, 0, 7, 3], computed=50) == [0, 0, 100, 101]
    assert memory.computed == 18
    assert requests.extend(0, [9]) == [102]
    assert requests.open(1, [0, 0], computed=0) == [0, 0]
    assert memory.computed == 0
    assert requests.extend(1, [4]) == [200]
    done = [("open", [7, 3]), ("extend", 1, [9]), ("open", []), ("extend", 2, [4])]
    assert memory.done == done


def test_kernels_without_a_table_find_null_blocks_at_their_places(memory, requests):
    memory.reads_by_table = False
    assert requests.open(0, [0, 7], computed=20) == [100, 101]
    assert memory.computed == 20
    assert memory.done == [("open", [0, 7])]


def test_a_place_that_is_used_again_ends_the_request_before(memory, requests):
    requests.open(0, [1])
    assert requests.open(0, [2]) == [200]
    assert memory.done == [("open", [1]), ("close", 1), ("open", [2])]


def test_a_request_that_ends_twice_is_closed_once(memory, requests):
    requests.open(0, [1])
    requests.close(0)
    requests.close(0)
    assert memory.done.count(("close", 1)) == 1


def test_a_request_keeps_its_row_where_it_moves(memory, requests):
    requests.open(0, [1])
    requests.open(1, [2])
    requests.move(1, 0)  # the request at 0 is over
    assert ("close", 1) in memory.done
    assert requests.extend(0, [3]) == [201]
    with pytest.raises(RowError, match="no request at place 1"):
        requests.extend(1, [4])


def test_a_move_to_its_own_place_changes_nothing(memory, requests):
    requests.open(2, [1])
    requests.move(2, 2)
    assert requests.extend(2, [5]) == [101]
    assert ("close", 1) not in memory.done


def test_two_requests_change_places(requests):
    requests.open(0, [1])
    requests.open(1, [2, 3])
    requests.swap(0, 1)
    assert requests.extend(0, [4]) == [202]
    assert requests.extend(1, [5]) == [101]


def test_a_request_changes_places_with_none(requests):
    requests.open(0, [1])
    requests.swap(0, 1)
    assert requests.extend(1, [2]) == [101]
    with pytest.raises(RowError, match="place 0"):
        requests.extend(0, [3])
