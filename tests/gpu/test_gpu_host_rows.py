# SPDX-License-Identifier: Apache-2.0
"""Rows of vLLM's workers to pinned host memory and back, behind the kernels that write them."""

# ruff: noqa: E402
from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from pyvattn import _native
from pyvattn.integrations.vllm.build import timing_event
from pyvattn.integrations.vllm.host_rows import HostRows
from pyvattn.integrations.vllm.layout import Paging
from pyvattn.integrations.vllm.memory import RowMemory, Sizes

PAGE = 2 << 20
# Llama-3-8B's: a block of 16 tokens is a page.
SIZES = Sizes(
    layers=32,
    heads=8,
    head_size=128,
    dtype="bfloat16",
    block_size=16,
    blocks=40,
    rows=5,
    max_blocks=12,
)
# Of the GPU, long after everything was launched.
CYCLES = 1_000_000_000


@pytest.fixture
def memory():
    driver = _native.make_driver("cumem", PAGE, 0)
    memory = RowMemory(SIZES, Paging(PAGE, 32), driver, background=True)
    yield memory
    memory.close_all()


def pages(memory, row, count):
    return memory.rows.arena(0)[row].view(-1, PAGE)[:count]


def test_what_a_row_holds_comes_back_to_other_blocks_in_stream_order(memory):
    rows = HostRows(memory, 16 * PAGE, timing_event)
    first = memory.open(list(range(3, 13)))
    memory.join()
    wanted = torch.randint(256, (10, PAGE), dtype=torch.uint8, device="cuda")
    torch.cuda._sleep(CYCLES)
    pages(memory, first, 10).copy_(wanted)
    assert rows.save("a", first, 10 * 16)
    pages(memory, first, 10).zero_()
    memory.close(first)
    second = memory.open(list(range(20, 30)))
    assert rows.load("a", second, 2 * 16, 10 * 16)
    # The piece is another's as soon as it is given back: that copy comes behind.
    assert rows.save("b", 0, 12 * 16)
    assert pages(memory, second, 10)[2:].equal(wanted[2:])
    assert rows.stats()["swapped_in"] == 1


def test_host_memory_is_pinned_and_copies_are_timed_by_the_device(memory):
    rows = HostRows(memory, 16 * PAGE, timing_event)
    (segment,) = rows._pool._segments
    assert segment.is_pinned()
    assert rows.token_seconds > 0
