# SPDX-License-Identifier: Apache-2.0
"""Rows that are mapped by the map's own thread."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from checked_cache import small_spec

from pyvattn import (
    BlockError,
    BlockPool,
    ClosedError,
    DriverError,
    OutOfMemory,
    RowMap,
    _native,
)

SECONDS = 60  # until a test gives up on a process that hangs

# It keeps the GIL from before flush_async() until the test has seen the memory mapped.
PROGRAM = """
import ctypes, sys
from pyvattn import BlockPool, CacheSpec, RowMap, _native
sys.setswitchinterval(1000)
spec = CacheSpec(1, 1, 256, "float32", max_slots=2, max_tokens=640, guard_tokens=0)
driver = _native.make_driver("host", 64 << 10)
pool = BlockPool.on_driver(spec, driver, layout="layer", memory="4MiB")
rows = RowMap(pool)
row = rows.open(pool.allocate(2))
read, told = ctypes.PyDLL(None).read, ctypes.create_string_buffer(1)
assert pool.stats().map_calls == 0
rows.flush_async()
assert read(0, told, 1) == 1
assert pool.stats().map_calls > 0
rows.join()
pool.close()
"""

# The child ends by itself, and destroys a map whose thread is the parent's.
FORKING = """
import os, sys
from pyvattn import BlockPool, CacheSpec, ForkError, RowMap, _native
spec = CacheSpec(1, 1, 256, "float32", max_slots=2, max_tokens=640, guard_tokens=0)
driver = _native.make_driver("host", 64 << 10)
pool = BlockPool.on_driver(spec, driver, layout="layer", memory="4MiB")
rows = RowMap(pool)
row = rows.open(pool.allocate(2))
rows.flush_async()
rows.join()
pid = os.fork()
if pid == 0:
    for call in (rows.flush_async, rows.join):
        try:
            call()
        except ForkError:
            continue
        os._exit(1)
    sys.exit()
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
rows.close(row)
rows.flush_async()
rows.join()
pool.close()
"""


class Engine:
    """A pool and a map on a driver whose calls can be made to fail."""

    def __init__(self):
        self.faults = _native.FaultAdaptor(_native.make_driver("host", 64 << 10))
        self.checked = _native.CheckedAdaptor(self.faults)
        spec = small_spec(max_tokens=8192)
        self.pool = BlockPool.on_driver(spec, self.checked, layout="layer", memory=16 * 4 * 65536)
        self.rows = RowMap(self.pool)

    def keys(self):
        return self.rows.layer(0, np.from_dlpack)[0]


@pytest.fixture
def engine():
    engine = Engine()
    yield engine
    engine.faults.disarm()
    engine.pool.close()


def test_it_maps_while_another_thread_keeps_the_gil():
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as program:
        mappings = Path(f"/proc/{program.pid}/maps")
        end = time.monotonic() + SECONDS
        try:
            while "pyvattn-slab" not in mappings.read_text():
                assert program.poll() is None, program.stderr.read().decode()
                assert time.monotonic() < end, "nothing is mapped without the GIL"
            _, failure = program.communicate(b"!", timeout=SECONDS)
        finally:
            program.kill()
    assert program.returncode == 0, failure.decode()


def test_after_join_everything_staged_is_mapped(engine):
    first = engine.rows.open(engine.pool.allocate(2))
    engine.rows.flush_async()
    second = engine.rows.open(engine.pool.allocate(1))
    engine.rows.join()
    keys = engine.keys()
    keys[first, :8], keys[second, :8] = 1, 2
    assert (keys[first, :8] == 1).all()
    assert (keys[second, :8] == 2).all()
    before = engine.pool.stats()
    engine.rows.flush_async()
    engine.rows.join()
    assert engine.pool.stats().map_batches == before.map_batches


def test_seconds_in_the_background_are_counted(engine):
    engine.rows.open(engine.pool.allocate(2))
    engine.rows.flush_async()
    engine.rows.join()
    stats = engine.pool.stats()
    assert 0 < stats.map_seconds <= stats.flush_seconds


@pytest.mark.parametrize(("out_of_memory", "error"), [(False, DriverError), (True, OutOfMemory)])
def test_a_failure_comes_at_join_and_the_next_tries_again(engine, out_of_memory, error):
    blocks = engine.pool.allocate(2)
    row = engine.rows.open(blocks)
    engine.faults.fail_nth(0, out_of_memory)
    engine.rows.flush_async()
    with pytest.raises(error, match="injected"):
        engine.rows.join()
    assert engine.checked.mapped_bytes == 0
    engine.rows.join()
    assert engine.checked.mapped_bytes == 2 * 4 * 65536
    assert engine.rows.blocks(row) == blocks


def test_a_released_block_is_named_at_join(engine):
    (block,) = engine.pool.allocate(1)
    engine.rows.open([block])
    engine.pool.release([block])
    engine.rows.flush_async()
    with pytest.raises(BlockError, match=f"block {block} .* released before it was mapped"):
        engine.rows.join()
    engine.rows.discard()
    engine.rows.join()


def test_a_closed_pool_says_so(engine):
    engine.rows.open(engine.pool.allocate(1))
    engine.rows.flush_async()
    engine.pool.close()
    for call in (engine.rows.flush_async, engine.rows.join):
        with pytest.raises(ClosedError):
            call()


def test_a_child_process_is_refused_and_ends():
    done = subprocess.run(
        [sys.executable, "-c", FORKING], capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, done.stderr
