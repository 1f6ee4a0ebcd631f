# SPDX-License-Identifier: Apache-2.0
"""What a row map must do on every driver: subclass, name the driver, and the suite runs on it.

Random schedules with driver calls that fail and two batches in flight. What is compared is
memory, as those find it who read a row; the C++ tests compare what the driver is asked for.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor, wait

import pytest
from row_engine import POSITIONS, ROWS, Engine, HeldWork, Memory

from pyvattn import DriverError, OutOfMemory


class Schedule:
    """A random one of an engine's operations after another."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.random = engine, engine.random
        self.batches_beside = 0

    def run(self, operations: int) -> None:
        engine = self.engine
        acts = (
            *(self.allocate, self.release, self.open, self.open, self.extend, self.trim),
            *(self.close, self.reclaim, self.flush_with_faults, self.flush_behind_work),
        )
        for _ in range(operations):
            self.random.choice(acts)()
        engine.flush()
        engine.check()

    def some_blocks(self, most: int) -> list[int]:
        held = self.engine.held
        return [self.random.choice(held) for _ in range(self.random.randint(0, most)) if held]

    def some_row(self) -> int | None:
        return self.random.choice(list(self.engine.rows)) if self.engine.rows else None

    def allocate(self) -> None:
        available = self.engine.pool.stats().blocks_available
        if available:
            self.engine.allocate(self.random.randint(1, min(4, available)))

    def release(self) -> None:
        """Not what is staged: the map wants it held until it is mapped."""
        engine = self.engine
        if engine.held and engine.rows == engine.flushed:
            block = engine.held.pop(self.random.randrange(len(engine.held)))
            engine.pool.release([block])

    def open(self) -> None:
        if len(self.engine.rows) < ROWS:
            self.engine.open(self.some_blocks(POSITIONS))

    def extend(self) -> None:
        row = self.some_row()
        if row is not None:
            self.engine.extend(row, self.some_blocks(POSITIONS - len(self.engine.rows[row])))

    def trim(self) -> None:
        row = self.some_row()
        if row is not None:
            have = len(self.engine.rows[row]) - self.engine.holes(row)
            front = self.random.randint(0, have)
            self.engine.trim(row, front, self.random.randint(0, have - front))

    def close(self) -> None:
        row = self.some_row()
        if row is not None:
            self.engine.close(row)

    def reclaim(self) -> None:
        self.engine.map.reclaim(self.random.randint(0, 3))

    def flush_with_faults(self) -> None:
        engine = self.engine
        engine.faults.fail_nth(self.random.randint(0, 2))
        try:
            engine.flush()
        except DriverError:
            engine.check()
            if self.random.random() < 0.5:
                engine.map.discard()
                engine.rows = {row: list(blocks) for row, blocks in engine.flushed.items()}
            engine.faults.disarm()
            engine.flush()
        engine.faults.disarm()
        engine.check()

    def flush_behind_work(self) -> None:
        """Take mappings away that the device still reads, and let another batch overtake."""
        engine = self.engine
        engine.flush()
        readers = [row for row, blocks in engine.flushed.items() if set(blocks) - {None}]
        if not readers:
            return
        row = self.random.choice(readers)
        fails = self.random.random() < 0.3
        # The work ends first, then the thread that waits for it.
        with ThreadPoolExecutor(1) as aside, engine.memory.held_work(engine.name) as work:
            have = len(engine.rows[row]) - engine.holes(row)
            engine.trim(row, 0, self.random.randint(1, have), after=work.fence)
            flushing = aside.submit(engine.map.flush)
            wait_until_it_waits(flushing, work)
            engine.check_memory()
            self.batch_beside(row)
            engine.check_memory()
            if fails:
                engine.faults.fail_nth(0)
        assert isinstance(flushing.exception(), DriverError) == fails
        if fails:
            engine.check()
        engine.flush()
        engine.check()

    def batch_beside(self, in_flight: int) -> None:
        """A batch on other rows than the one in flight, which may fail."""
        engine = self.engine
        others = [
            (row, position)
            for row, position, block in engine.positions()
            if row != in_flight and block is not None
        ]
        if self.random.random() < 0.3:
            engine.faults.fail_nth(0)
        try:
            if others and self.random.random() < 0.5:
                engine.zero(*self.random.choice(others))
            else:
                self.reclaim()
        except DriverError:
            pass
        engine.faults.disarm()


def wait_until_it_waits(flushing: Future[None], work: HeldWork) -> None:
    """Return once a flush waits for the work; fail where it goes on without."""
    while not work.is_awaited():
        done, _ = wait([flushing], timeout=0.001)
        assert not done, "a flush went on before what it unmaps was read"


class RowConformance:
    """Hold the row map on one driver to uvm_ext/rows/row_map.hpp. Subclasses set ``name``."""

    name: str
    operations = 400
    memory = Memory()

    @pytest.mark.parametrize("seed", range(3))
    def test_random_schedules_agree_with_the_books(self, seed):
        with Engine(self.name, self.memory, seed) as engine:
            Schedule(engine).run(self.operations)

    def test_a_flush_is_whole_or_not_at_all_whichever_call_fails(self):
        calls = 0
        while self.flush_fails_at(calls):
            calls += 1
            assert calls < 9
        assert calls > 1

    def flush_fails_at(self, nth):
        """Whether a flush has an nth driver call, which then fails."""
        with Engine(self.name, self.memory) as engine:
            stage_every_kind_of_change(engine)
            engine.faults.fail_nth(nth)
            failed = flush_fails_and_changes_nothing(engine)
            assert failed != engine.faults.armed
        return failed


def stage_every_kind_of_change(engine: Engine) -> None:
    """A row is opened in place of a closed one, one grows, one is cut at both ends."""
    a, b, c, d, e, f = engine.allocate(6)
    closed = engine.open([a, b, c])
    cut = engine.open([b, a, d, a])
    grown = engine.open([c])
    for block in (d, e):
        engine.open([block])
    engine.flush()
    engine.close(closed)
    engine.flush()
    engine.open([f, b])
    engine.trim(cut, 1, 1)
    engine.extend(grown, [e, f])


def flush_fails_and_changes_nothing(engine: Engine) -> bool:
    """Flush; return whether that failed, and then flush once more."""
    try:
        engine.flush()
    except (DriverError, OutOfMemory):
        engine.check()
        engine.flush()
        failed = True
    else:
        failed = False
    engine.check()
    return failed
