# SPDX-License-Identifier: Apache-2.0
"""Which pages fresh ids get, and which row they are chosen for: the books alone."""

from __future__ import annotations

import pytest

from pyvattn.integrations.vllm.late_binding import LateBinding


def serve(binding, row, ids):
    """A request that had a row, some steps ago."""
    binding.open(row, ids)
    binding.close(row)
    rest(binding)


def rest(binding):
    for _ in range(4):
        binding.end_step()


@pytest.fixture
def binding():
    """Two rows for requests; every id has the page of its own number."""
    return LateBinding(blocks=20, rows=2)


def test_of_closed_rows_the_one_is_taken_that_leaves_least_to_map(binding):
    serve(binding, 1, [1, 2])
    serve(binding, 2, [3, 4, 5])
    binding.bind([7, 8, 9], fixed=0)
    assert binding.pages([7, 8, 9]) == [3, 4, 5]


def test_the_row_whose_blocks_are_evicted_is_taken_and_nothing_is_copied(binding):
    serve(binding, 1, [1, 2, 3])
    serve(binding, 2, [4, 5, 6])
    assert binding.bind([6, 5, 4], fixed=0) == []  # as vLLM frees them: from the end
    assert binding.pages([6, 5, 4]) == [4, 5, 6]


def test_what_is_evicted_of_a_row_is_not_missed_there(binding):
    serve(binding, 1, [1, 2, 9])
    serve(binding, 2, [3, 4, 5, 6])
    binding.bind([6, 5], fixed=0)
    assert binding.pages([6, 5]) == [3, 4]


def test_a_row_with_more_behind_that_may_be_found_again_is_left_alone(binding):
    serve(binding, 1, [1, 2, 3, 4, 5, 6])
    serve(binding, 2, [7, 8])
    assert binding.bind([11, 12], fixed=0) == [(7, 11), (8, 12)]


def test_a_new_row_is_taken_rather_than_one_that_may_be_found_again():
    binding = LateBinding(blocks=20, rows=2)
    serve(binding, 1, [1, 2, 3, 4])
    assert binding.bind([5, 6], fixed=0) == []


def test_a_row_that_kernels_may_still_read_is_left_alone_where_pages_are_replaced():
    binding = LateBinding(blocks=20, rows=3)
    serve(binding, 1, [1, 2, 3])
    serve(binding, 2, [4, 2, 5])
    binding.open(2, [4])
    binding.close(2)
    binding.end_step()
    binding.open(3, [2, 3])
    # In row 1 two pages are another request's, in row 2 one; but that ended a step ago.
    binding.bind([7, 8, 9], fixed=0)
    assert binding.pages([7]) == [1]
    rest(binding)
    binding.bind([10, 11, 12], fixed=0)
    assert binding.pages([10, 12]) == [4, 5]


def test_a_new_row_is_taken_rather_than_one_that_ended_in_this_step_and_would_be_cut(binding):
    binding.open(1, [1, 2, 3])
    binding.close(1)
    assert binding.bind([7], fixed=0) == []
    assert binding.pages([7]) == [7]
    binding.open(2, [7])
    assert binding.bind([8], fixed=0) == [(1, 8)]  # no row is left


def test_a_row_that_begins_with_a_hit_is_the_one_to_come_though_a_new_one_is_left(binding):
    binding.open(1, [1, 2, 3])
    binding.close(1)
    assert binding.bind([1, 7], fixed=1) == [(2, 7)]


def test_what_lies_behind_in_a_row_that_ends_in_this_step_is_not_counted_on(binding):
    binding.open(1, [1, 2, 3])
    binding.close(1)
    binding.bind([7], fixed=0)
    binding.open(1, [7])
    assert binding.bind_more(1, [8]) == []
    assert binding.pages([8]) == [8]


def test_where_no_row_begins_with_a_hit_the_longest_closed_is_taken(binding):
    serve(binding, 1, [1, 2, 3])
    assert binding.bind([9, 7], fixed=1) == []  # a row is left that has nothing yet
    serve(binding, 2, [4, 5, 6])
    assert binding.bind([9, 7, 8], fixed=1) == [(2, 7), (3, 8)]
    assert binding.pages([9, 7, 8]) == [9, 2, 3]


def test_a_page_that_a_row_has_twice_is_taken_once():
    binding = LateBinding(blocks=20, rows=1)
    serve(binding, 1, [4, 5])
    serve(binding, 1, [5])
    binding.bind([7, 8], fixed=0)
    assert binding.pages([7, 8]) == [5, 8]


def test_a_hit_keeps_its_page_though_a_fresh_id_would_suit_it_too(binding):
    serve(binding, 1, [4, 5])
    serve(binding, 1, [5])
    assert binding.bind([5, 8], fixed=1) == []
    assert binding.pages([5, 8]) == [5, 8]
