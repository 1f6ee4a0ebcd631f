# SPDX-License-Identifier: Apache-2.0
"""Rows that go to host memory and come back, on the host driver."""

from __future__ import annotations

import pytest
from test_memory import PAGE, make_memory

from pyvattn.integrations.vllm import host_rows
from pyvattn.integrations.vllm.host_rows import HostRows

torch = pytest.importorskip("torch", reason="rows are copied with torch")


@pytest.fixture
def memory():
    memory, _ = make_memory()
    yield memory
    memory.close_all()


def filled(memory, blocks):
    """Open a row of these blocks, of which each is filled with its id."""
    row = memory.open(blocks)
    memory.join()
    pages(memory, row)[: len(blocks)] = torch.tensor(blocks, dtype=torch.uint8)[:, None]
    return row


def pages(memory, row):
    return memory.rows.arena(0)[row].view(-1, PAGE)


def test_a_row_comes_back_to_other_blocks_behind_what_they_have(memory):
    rows = HostRows(memory, 3 * PAGE)
    first = filled(memory, [3, 4, 5])
    assert rows.save("a", first, 2 * 64 + 1)
    memory.close(first)
    second = filled(memory, [3, 6, 7])
    pages(memory, second)[0] = 9
    assert rows.stats()["swap_host_bytes"] == 3 * PAGE
    assert rows.load("a", second, 64, 2 * 64 + 1)
    assert [int(page[0]) for page in pages(memory, second)[:3]] == [9, 4, 5]
    assert pages(memory, second)[2].eq(5).all()
    counted = rows.stats()
    assert counted["swap_bytes_out"] == 3 * PAGE
    assert counted["swap_bytes_in"] == 2 * PAGE
    assert counted["swap_host_bytes"] == counted["swapped_now"] == 0


def test_one_copy_for_each_arena(memory, monkeypatch):
    rows = HostRows(memory, 8 * PAGE)
    copies = noted_copies(monkeypatch)
    row = memory.open([3, 4, 5, 6, 7])
    memory.join()
    rows.save("a", row, 5 * 64)
    rows.load("a", row, 0, 5 * 64)
    assert copies == [5 * PAGE] * 2


def noted_copies(monkeypatch):
    """Return a list to which the bytes of each copy come."""
    copies = []
    copy = host_rows._copy

    def noted(target, source):
        copies.append(source.numel())
        copy(target, source)

    monkeypatch.setattr(host_rows, "_copy", noted)
    return copies


def test_where_host_memory_is_in_pieces_a_copy_for_each_run(memory, monkeypatch):
    rows = HostRows(memory, 4 * PAGE)
    copies = noted_copies(monkeypatch)
    for name, blocks in (("a", [3, 4]), ("b", [5]), ("c", [6])):
        assert rows.save(name, filled(memory, blocks), 64 * len(blocks))
    # Runs of two blocks and of one are left.
    rows.drop("a")
    rows.drop("c")
    del copies[:]
    whole = filled(memory, [8, 9, 10])
    assert rows.save("d", whole, 3 * 64)
    for page in pages(memory, whole)[:3]:
        page.zero_()
    assert rows.load("d", whole, 64, 3 * 64)
    assert [int(page[0]) for page in pages(memory, whole)[:3]] == [0, 9, 10]
    assert copies == [2 * PAGE, PAGE, PAGE, PAGE]
    assert rows.stats()["swap_host_bytes"] == PAGE


def test_what_finds_no_room_is_refused_and_comes_back_from_nowhere(memory):
    rows = HostRows(memory, 2 * PAGE)
    row = filled(memory, [3, 4])
    assert rows.save("a", row, 128)
    assert not rows.save("b", row, 1)
    assert not rows.load("b", row, 0, 1)
    rows.drop("a")
    rows.drop("a")
    assert rows.save("b", row, 1)
    assert rows.stats()["swap_refused"] == 1
    assert not rows.save("c", None, 1)


@pytest.mark.parametrize("out", [True, False], ids=["out", "back"])
def test_a_copy_that_fails_leaves_no_host_memory_taken(memory, monkeypatch, out):
    rows = HostRows(memory, 8 * PAGE)
    row = filled(memory, [3, 4])

    def fail(*_):
        raise RuntimeError("injected")

    if not out:
        assert rows.save("a", row, 128)
    monkeypatch.setattr(host_rows, "_copy", fail)
    if out:
        assert not rows.save("a", row, 128)
    assert not rows.load("a", row, 0, 128)
    assert rows.stats()["swap_host_bytes"] == 0


def test_all_of_it_is_taken_at_the_start_and_nothing_later(memory, monkeypatch):
    rows = HostRows(memory, 4 * PAGE + 1)
    row = filled(memory, [3, 4])

    def fail(*_, **__):
        raise AssertionError("memory is asked for")

    monkeypatch.setattr(torch, "empty", fail)
    for name in ("a", "b"):
        assert rows.save(name, row, 128)
    assert not rows.save("c", row, 1)


def test_how_long_a_token_takes_is_measured_and_leaves_what_was_there(memory):
    pages(memory, 0)[0] = 7
    rows = HostRows(memory, 4 * PAGE)
    assert rows.token_seconds > 0
    assert rows.stats()["swap_token_seconds"] == rows.token_seconds
    assert pages(memory, 0).eq(7).all()
    assert rows.stats()["swapped_out"] == rows.stats()["swap_host_bytes"] == 0


def test_host_memory_for_not_one_block_takes_nothing(memory):
    rows = HostRows(memory, PAGE - 1)
    assert rows.token_seconds is None
    assert not rows.save("a", filled(memory, [3]), 1)


def test_what_is_closed_holds_no_host_memory(memory):
    rows = HostRows(memory, 8 * PAGE)
    row = filled(memory, [3, 4])
    rows.save("a", row, 128)
    rows.save("b", row, 64)
    assert rows.stats()["swap_host_bytes"] == 3 * PAGE
    rows.close()
    assert rows.stats()["swap_host_bytes"] == 0
