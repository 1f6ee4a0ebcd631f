# SPDX-License-Identifier: Apache-2.0
"""Rows that go to host memory and come back, on the host driver."""

from __future__ import annotations

import pytest
from test_memory import PAGE, make_memory

from pyvattn.integrations.vllm.host_rows import HostRows
from pyvattn.layers import LayerTensors

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
    copies = []
    copy = torch.Tensor.copy_

    def noted(self, source, *arguments, **options):
        copies.append(source.numel())
        return copy(self, source, *arguments, **options)

    monkeypatch.setattr(torch.Tensor, "copy_", noted)
    rows = HostRows(memory, 5 * PAGE)
    row = memory.open([3, 4, 5, 6, 7])
    memory.join()
    rows.save("a", row, 5 * 64)
    rows.load("a", row, 0, 5 * 64)
    assert copies == [5 * PAGE] * 2


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


@pytest.mark.parametrize("name", ["to_host", "fill"])
def test_a_copy_that_fails_leaves_no_host_memory_taken(memory, monkeypatch, name):
    rows = HostRows(memory, 8 * PAGE)
    row = filled(memory, [3, 4])

    def fail(*_, **__):
        raise RuntimeError("injected")

    if name == "fill":
        assert rows.save("a", row, 128)
    monkeypatch.setattr(LayerTensors, name, fail)
    if name == "to_host":
        assert not rows.save("a", row, 128)
    assert not rows.load("a", row, 0, 128)
    assert rows.stats()["swap_host_bytes"] == 0


def test_what_is_closed_holds_no_host_memory(memory):
    rows = HostRows(memory, 8 * PAGE)
    row = filled(memory, [3, 4])
    rows.save("a", row, 128)
    rows.save("b", row, 64)
    assert rows.stats()["swap_host_bytes"] == 3 * PAGE
    rows.close()
    assert rows.stats()["swap_host_bytes"] == 0
