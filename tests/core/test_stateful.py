# SPDX-License-Identifier: Apache-2.0
"""Random sequences of calls against a model of a few lines."""

from __future__ import annotations

import gc

import pytest
from checked_cache import Bench, small_spec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pyvattn import DriverError, LengthError, LimitError, OutOfMemory, OutOfSlots

LENGTHS = st.integers(min_value=0, max_value=1024)
PAGES = 96


class CacheMachine(RuleBasedStateMachine):
    """Live slots hold what was written to them, whatever happens around them."""

    @initialize(
        name=st.sampled_from(["host", "cumem-emulated", "stock-uvm-emulated", "patched-emulated"]),
        layout=st.sampled_from(["layer", "token"]),
        background=st.booleans(),
    )
    def open(self, name, layout, background):
        self.bench = Bench(
            small_spec(), name=name, layout=layout, background=background, pages=PAGES
        )
        self.cache = self.bench.cache
        self.lengths = {}
        self.marks = {}
        self.next_mark = 1.0

    def pick(self, data):
        return data.draw(st.sampled_from(sorted(self.lengths, key=lambda slot: slot.index)))

    @rule(tokens=LENGTHS)
    def acquire(self, tokens):
        if len(self.lengths) == 4:
            with pytest.raises(OutOfSlots):
                self.cache.acquire(tokens)
            return
        slot = self.cache.acquire(tokens)
        assert slot.index not in [other.index for other in self.lengths]
        self.lengths[slot] = 0
        self.marks[slot] = self.next_mark
        self.next_mark += 1

    def write(self, slot, start, end):
        for layer in range(2):
            for tensor in self.bench.arrays(layer):
                assert not tensor[slot, start:end].any(), "new tokens must read as zeros"
                tensor[slot, start:end] = self.marks[slot]

    @precondition(lambda self: self.lengths)
    @rule(data=st.data(), length=LENGTHS)
    def grow(self, data, length):
        slot = self.pick(data)
        admitted = self.cache.can_admit(length) or len(self.lengths) == 4
        before = self.lengths[slot]
        if length <= before:
            return
        refusal = None
        try:
            self.cache.step({slot: length})
        except OutOfMemory as error:
            refusal = error
        if refusal is not None:
            assert refusal.requested > refusal.free + refusal.reclaimable
            assert not admitted or len(self.lengths) == 4
            assert self.cache.length(slot) == before
            return
        self.write(slot, before, length)
        self.lengths[slot] = length

    @precondition(lambda self: self.lengths)
    @rule(data=st.data(), length=LENGTHS)
    def prefetch(self, data, length):
        self.cache.prefetch({self.pick(data): length})

    @precondition(lambda self: self.lengths)
    @rule(data=st.data())
    def release(self, data):
        slot = self.pick(data)
        self.cache.release(slot)
        del self.lengths[slot]

    @rule(pages=st.integers(min_value=1, max_value=PAGES))
    def resize(self, pages):
        try:
            self.cache.resize(pages * self.bench.page)
        except LimitError:
            assert self.cache.stats().pages_live > 0 or pages < self.cache.geometry.arenas

    @precondition(lambda self: self.lengths)
    @rule(data=st.data())
    def too_long(self, data):
        with pytest.raises(LengthError):
            self.cache.step({self.pick(data): 1025})

    @precondition(lambda self: self.lengths)
    @rule(data=st.data(), nth=st.integers(min_value=0, max_value=3), out_of_memory=st.booleans())
    def a_call_fails(self, data, nth, out_of_memory):
        slot = self.pick(data)
        before = self.lengths[slot]
        self.cache.drain()
        self.bench.faults.fail_nth(nth, out_of_memory)
        try:
            self.cache.step({slot: 1024})
            self.write(slot, before, 1024)
            self.lengths[slot] = 1024
        except (DriverError, OutOfMemory):
            assert self.cache.length(slot) == before
        finally:
            self.cache.drain()
            self.bench.faults.disarm()

    @invariant()
    def books_are_right(self):
        if not hasattr(self, "cache"):
            return
        self.cache.drain()
        s = self.bench.check_books()
        assert s.slots_live == len(self.lengths)
        assert s.bytes_used == sum(self.lengths.values()) * self.cache.spec.token_bytes
        for slot, length in self.lengths.items():
            assert self.cache.length(slot) == length
            for layer in range(2):
                for tensor in self.bench.arrays(layer):
                    assert (tensor[slot, :length] == self.marks[slot]).all()

    def teardown(self):
        if not hasattr(self, "cache"):
            return
        self.cache.close()
        gc.collect()
        assert self.bench.checked.mapped_bytes == 0
        assert self.bench.checked.live_slabs == 0


TestStateful = CacheMachine.TestCase
TestStateful.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
