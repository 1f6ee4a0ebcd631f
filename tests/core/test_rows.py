# SPDX-License-Identifier: Apache-2.0
"""Blocks and rows as engines with a block manager of their own use them."""

from __future__ import annotations

import runpy
import threading
from pathlib import Path

import numpy as np
import pytest
from checked_cache import small_spec

from pyvattn import (
    ArgumentError,
    BlockError,
    BlockPool,
    ClosedError,
    DriverError,
    LengthError,
    LimitError,
    OutOfMemory,
    OutOfSlots,
    RowError,
    RowMap,
    _native,
)

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "block_manager.py"


class Engine:
    """A pool and a map on a checked driver whose calls can be made to fail."""

    def __init__(self, name="host", blocks=16, **changes):
        page = _native.driver_capabilities(name).page_sizes[0]
        self.faults = _native.FaultAdaptor(_native.make_driver(name, page))
        self.checked = _native.CheckedAdaptor(self.faults)
        spec = small_spec(**{"max_tokens": 8192, **changes})
        self.pool = BlockPool.on_driver(
            spec, self.checked, layout="layer", memory=blocks * 4 * page
        )
        self.rows = RowMap(self.pool)
        self.page = page

    def tokens(self):
        """Tokens in a block."""
        return self.page // self.pool.geometry.token_bytes

    def keys(self, layer=0):
        return self.rows.layer(layer, np.from_dlpack)[0]


@pytest.fixture
def open_engine():
    engines = []

    def open_one(*arguments, **options):
        engines.append(Engine(*arguments, **options))
        return engines[-1]

    yield open_one
    for engine in engines:
        engine.faults.disarm()
        engine.pool.close()
        assert engine.checked.mapped_bytes == 0
        assert engine.checked.live_slabs == 0


def test_1_what_is_flushed_is_mapped(open_engine, driver_name):
    engine = open_engine(driver_name)
    blocks = engine.pool.allocate(2)
    row = engine.rows.open(blocks)
    assert engine.checked.mapped_bytes == 0
    engine.rows.flush()
    assert engine.checked.mapped_bytes == 2 * 4 * engine.page
    assert engine.rows.blocks(row) == blocks
    tokens = 2 * engine.tokens()
    keys = engine.keys(1)
    assert not keys[row, :tokens].any()
    keys[row, :tokens] = 3
    assert (keys[row, :tokens] == 3).all()


def test_1_a_flush_that_fails_changes_nothing_and_can_be_made_again(open_engine, driver_name):
    engine = open_engine(driver_name)
    row = engine.rows.open(engine.pool.allocate(1))
    engine.rows.flush()
    more = engine.pool.allocate(1)
    engine.rows.extend(row, more)
    before = engine.checked.mapped_bytes
    engine.faults.fail_nth(0)
    with pytest.raises(DriverError, match="injected"):
        engine.rows.flush()
    assert engine.checked.mapped_bytes == before
    assert engine.rows.blocks(row)[1:] == more
    engine.rows.flush()
    assert engine.checked.mapped_bytes == 2 * before


def test_2_a_row_is_its_blocks_in_order(open_engine):
    engine = open_engine()
    a, b = engine.pool.allocate(2)
    first, second = engine.rows.open([a, b]), engine.rows.open([b, a])
    engine.rows.flush()
    keys, n = engine.keys(), engine.tokens()
    keys[first, :n], keys[first, n : 2 * n] = 1, 2
    assert (keys[second, :n] == 2).all()
    assert (keys[second, n : 2 * n] == 1).all()


def test_3_nothing_is_unmapped_before_its_fence_has_passed(open_engine):
    """On the emulated GPU, whose kernels fault where their pages are gone."""
    gpu = _native.emulated_cuda
    gpu.reset()
    engine = open_engine("cumem-emulated", max_slots=1)
    row = engine.rows.open(engine.pool.allocate(1))
    engine.rows.flush()
    address = engine.keys()[row, :1].__array_interface__["data"][0]
    stream = gpu.make_stream(0)
    kernel = gpu.launch_kernel(0, stream, address, 4)
    engine.rows.close(row, after=stream)
    engine.rows.open(engine.pool.allocate(1))
    flushing = threading.Thread(target=engine.rows.flush)
    flushing.start()
    flushing.join(timeout=0.05)
    assert flushing.is_alive()
    gpu.release_kernel(kernel)
    flushing.join()
    assert gpu.violations() == []
    assert engine.pool.stats().fence_seconds > 0


def test_mapping_and_unmapping_are_timed_apart(open_engine):
    engine = open_engine()
    row = engine.rows.open(engine.pool.allocate(2))
    assert engine.pool.stats().map_seconds == 0
    engine.rows.flush()
    assert engine.pool.stats().map_seconds > 0
    assert engine.pool.stats().unmap_seconds == 0
    engine.rows.trim(row, tail=1)
    engine.rows.flush()
    assert engine.pool.stats().unmap_seconds > 0


def test_4_a_block_is_free_when_the_last_lets_go(open_engine):
    engine = open_engine(blocks=4)
    blocks = engine.pool.allocate(2)
    row = engine.rows.open([blocks[0], blocks[0]])
    engine.rows.flush()
    engine.pool.release(blocks)
    assert engine.pool.stats().blocks_available == 3
    engine.rows.trim(row, tail=1)
    engine.rows.flush()
    assert engine.pool.stats().blocks_available == 3
    engine.rows.trim(row, tail=1)
    engine.rows.flush()
    assert engine.pool.stats().blocks_available == 4


def test_4_a_reused_block_is_dirty_until_it_is_zeroed(open_engine):
    engine = open_engine(blocks=1, max_slots=1)
    blocks = engine.pool.allocate(1)
    assert engine.pool.dirty(blocks) == [False]
    row = engine.rows.open(blocks)
    engine.rows.flush()
    engine.keys()[row, :10] = np.nan
    engine.rows.close(row)
    engine.rows.flush()
    engine.pool.release(blocks)
    assert engine.rows.reclaim(1) == 1
    again = engine.pool.allocate(1)
    assert engine.pool.dirty(again) == [True]
    row = engine.rows.open(again)
    engine.rows.flush()
    engine.rows.zero(row)
    assert not engine.keys()[row, :10].any()


def test_trimmed_fronts_leave_the_rest_in_place(open_engine):
    engine = open_engine()
    blocks = engine.pool.allocate(3)
    row = engine.rows.open(blocks)
    engine.rows.flush()
    keys, n = engine.keys(), engine.tokens()
    keys[row, 2 * n : 3 * n] = 9
    engine.rows.trim(row, front=2)
    engine.rows.flush()
    assert engine.rows.blocks(row) == [None, None, blocks[2]]
    assert (keys[row, 2 * n : 3 * n] == 9).all()
    assert engine.checked.mapped_bytes == 4 * engine.page


def test_a_closed_row_is_reused_by_who_wants_its_blocks(open_engine):
    engine = open_engine()
    prompts = [engine.pool.allocate(3) for _ in range(3)]
    opened = [engine.rows.open(prompt) for prompt in prompts]
    engine.rows.flush()
    for row in opened:
        engine.rows.close(row)
    engine.rows.flush()
    calls = engine.pool.stats().map_calls
    assert engine.rows.open(prompts[1]) == opened[1]
    engine.rows.flush()
    assert engine.pool.stats().map_calls == calls


def test_what_is_staged_can_be_discarded(open_engine):
    engine = open_engine()
    kept = engine.rows.open(engine.pool.allocate(1))
    engine.rows.flush()
    engine.rows.trim(kept, tail=1)
    engine.rows.open([])
    engine.rows.discard()
    assert engine.rows.open_rows() == [kept]
    assert len(engine.rows.blocks(kept)) == 1


def test_refusals(open_engine):
    engine = open_engine(blocks=4)
    pool, rows = engine.pool, engine.rows
    (block,) = pool.allocate(1)
    row = rows.open([block])
    for act, error, message in (
        (lambda: pool.allocate(4), OutOfMemory, "4 asked for, 3 left"),
        (lambda: pool.allocate(-1), RowError, "count=-1"),
        (lambda: pool.allocate("1"), ArgumentError, "count='1'"),
        (lambda: pool.release([99]), BlockError, "block 99 is not held"),
        (lambda: pool.release([block, block]), BlockError, f"block {block} is not held"),
        (lambda: pool.release(7), ArgumentError, "blocks=7"),
        (lambda: pool.resize(1), LimitError, "release"),
        (lambda: rows.open([1.5]), BlockError, "1.5 is no block"),
        (lambda: rows.open([block] * 999), LengthError, "positions, not 999"),
        (lambda: rows.extend(3, [block]), RowError, "row 3 is not open"),
        (lambda: rows.trim(row, tail=2), RowError, "has 1 blocks"),
        (lambda: rows.zero(row), RowError, "flush"),
        (lambda: [rows.open([]) for _ in range(9)], OutOfSlots, "all 4 rows are open"),
        (lambda: RowMap(None), ArgumentError, "BlockPool"),
    ):
        with pytest.raises(error, match=message):
            act()
    assert rows.blocks(row) == [block]
    pool.close()
    for call in (lambda: pool.allocate(1), rows.flush, lambda: rows.open([])):
        with pytest.raises(ClosedError):
            call()


def test_the_example_of_the_docs_runs(capsys):
    pytest.importorskip("torch")
    assert len(EXAMPLE.read_text().splitlines()) <= 40
    runpy.run_path(str(EXAMPLE))
    # Two blocks of prompt are shared, and each request has one of its own.
    assert "4 blocks" in capsys.readouterr().out


def test_an_arena_is_all_its_bytes_for_layouts_of_the_engines_own(open_engine):
    engine = open_engine()
    row = engine.rows.open(engine.pool.allocate(2))
    engine.rows.flush()
    raw = engine.rows.arena(0, np.from_dlpack)
    assert raw.shape == (4, engine.rows.positions * engine.page)
    raw[row, engine.page] = 0x3F  # the first byte of the second position
    assert engine.keys()[row, engine.tokens(), 0, 0].tobytes()[0] == 0x3F
    with pytest.raises(ArgumentError, match="arena 4: use a whole number from 0 to 3"):
        engine.rows.arena(4)


def test_a_block_is_free_once_everybody_who_retained_it_let_go(open_engine):
    engine = open_engine()
    pool = engine.pool
    assert pool.blocks_for(engine.tokens() + 1) == 2
    free = pool.stats().blocks_available
    blocks = pool.allocate(2)
    pool.retain(blocks[:1])
    pool.release(blocks)
    assert pool.stats().blocks_available == free - 1
    pool.release(blocks[:1])
    assert pool.stats().blocks_available == free
    with pytest.raises(BlockError):
        pool.retain(blocks[:1])
