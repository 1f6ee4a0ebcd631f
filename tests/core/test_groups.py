# SPDX-License-Identifier: Apache-2.0
"""Caches whose layers differ: what each group holds, and that they act as one."""

from __future__ import annotations

import random

import numpy as np
import pytest

from pyvattn import (
    ArgumentError,
    BlockPool,
    CacheSpec,
    DriverError,
    KVCache,
    LayerGroup,
    LengthError,
    LimitError,
    OutOfMemory,
    OutOfSlots,
    SlotError,
    SpecError,
)
from pyvattn._native import emulated_cuda as gpu
from pyvattn.planner import held_bytes

WINDOW = 100


def grouped_spec(**changes):
    """64 tokens of the windowed layers in a page, 128 of the full one: 4 and 2 arenas."""
    groups = [
        LayerGroup([0, 2], kv_heads=4, head_dim=64, window=WINDOW),
        LayerGroup([1], kv_heads=2, head_dim=64),
    ]
    fields = {"dtype": "float32", "max_slots": 4, "max_tokens": 1024, "guard_tokens": 0}
    return CacheSpec(groups=groups, **{**fields, **changes})


def held(cache, tokens):
    """The pages that one request should hold by arithmetic."""
    return held_bytes(cache.spec, cache.geometries, tokens, False) // cache.page_size


def state(bench):
    """What a failed call must leave; spare pages may lie elsewhere."""
    lengths = {int(slot): length for slot, length in bench.cache.live_slots().items()}
    s = bench.cache.stats()
    return lengths, s.pages_live, s.bytes_used, s.slots_live


def test_layers_of_all_groups_are_where_the_spec_has_them(open_bench, driver_name):
    bench = open_bench(grouped_spec(), name=driver_name, pages=256)
    cache = bench.cache
    assert [bench.arrays(layer)[0].shape for layer in range(3)] == [
        (4, 1024, 4, 64),
        (4, 1024, 2, 64),
        (4, 1024, 4, 64),
    ]
    slot = cache.admit(90)
    for layer in range(3):
        for part, tensor in enumerate(bench.arrays(layer)):
            assert not tensor[slot, :90].any()
            tensor[slot, :90] = 10 * layer + part + 1
    for layer in range(3):
        for part, tensor in enumerate(bench.arrays(layer)):
            assert (tensor[slot, :90] == 10 * layer + part + 1).all()
    bench.check_books()


def test_a_window_holds_a_window_and_the_others_everything(open_bench):
    bench = open_bench(grouped_spec(), pages=64)
    cache = bench.cache
    windowed, full = bench.arrays(0)[0], bench.arrays(1)[0]
    slot = cache.admit(64)
    for length in range(65, 1025):
        cache.step({slot: length})
        windowed[slot, length - 1] = full[slot, length - 1] = length
        seen = np.arange(max(65, length - WINDOW + 1), length + 1)
        assert (windowed[slot, seen - 1, 0, 0] == seen).all()
    assert full[slot, 64:, 0, 0].tolist() == list(range(65, 1025))
    # Steps of one token: what is held is what the arithmetic says.
    assert bench.check_books().pages_live == held(cache, 1024)
    assert cache.live_pages() == {slot: held(cache, 1024)}


def test_memory_moves_between_groups_by_being_free(open_bench):
    """A long request fills the full layers; short ones after it need the others more."""
    bench = open_bench(grouped_spec(), pages=40)
    cache = bench.cache
    slot = cache.admit(64)
    for length in range(65, 1025):
        cache.step({slot: length})
    assert cache.stats().pages_live == held(cache, 1024) == 2 * 8 + 4 * 2
    cache.release(slot)
    slots = [cache.admit(100) for _ in range(4)]
    assert bench.check_books().pages_live == 4 * (2 + 4 * 2)
    assert not cache.can_admit(1)
    for each in slots:
        cache.release(each)
    assert cache.can_admit(384)
    cache.admit(384)
    assert bench.check_books().pages_live == 2 * 3 + 4 * 6


@pytest.mark.parametrize("pages", [30, 36])
def test_a_step_that_finds_no_memory_in_one_group_changes_none(open_bench, pages):
    bench = open_bench(grouped_spec(), pages=pages)
    cache = bench.cache
    one, two = cache.admit(192), cache.admit(128)
    bench.arrays(1)[0][one, :192] = 7
    lengths = dict(cache.live_slots())
    with pytest.raises(OutOfMemory, match="out of pages"):
        cache.step({one: 1000, two: 129})
    assert cache.live_slots() == lengths
    # What the windows left behind is gone all the same.
    before = state(bench)
    with pytest.raises(OutOfMemory, match="out of pages"):
        cache.step({one: 1000, two: 129})
    assert state(bench) == before
    with pytest.raises(OutOfMemory):
        cache.admit(1000)
    assert state(bench) == before
    assert cache.try_step({one: 1000}) is False
    assert state(bench) == before
    assert (bench.arrays(1)[0][one, :192] == 7).all()
    cache.step({one: 192, two: 128})
    bench.check_books()


def test_bad_requests_change_no_group(open_bench):
    bench = open_bench(grouped_spec())
    cache = bench.cache
    slot, gone = cache.admit(300), cache.admit(1)
    cache.release(gone)
    before = state(bench)
    for wrong, error in (({slot: 1025}, LengthError), ({slot: 301, gone: 2}, SlotError)):
        with pytest.raises(error):
            cache.step(wrong)
        assert state(bench) == before
    with pytest.raises(LengthError):
        cache.trim(slot, 301)
    with pytest.raises(SlotError):
        cache.release(gone)
    with pytest.raises(ArgumentError, match="rollback"):
        cache.step({slot: 301}, rollback=-1)
    assert state(bench) == before


def test_slots_are_those_of_all_groups(open_bench):
    bench = open_bench(grouped_spec())
    slots = [bench.cache.acquire(10) for _ in range(4)]
    with pytest.raises(OutOfSlots):
        bench.cache.acquire(10)
    bench.cache.release(slots[2])
    assert int(bench.cache.acquire(10)) == 2


def test_lengths_may_fall_by_what_was_said(open_bench):
    bench = open_bench(grouped_spec())
    cache = bench.cache
    slot = cache.admit(300)
    # Nothing of a prompt is gone before the next step.
    cache.step({slot: 10})
    cache.step({slot: 300})
    cache.step({slot: 310}, rollback=50)
    cache.step({slot: 260})
    with pytest.raises(LengthError, match=r"keep 100 tokens.*rollback=.*below 250"):
        cache.step({slot: 249})
    assert cache.length(slot) == 260
    with pytest.raises(LengthError, match="rollback"):
        cache.trim(slot, 249)
    cache.trim(slot, 250)
    # The same step again leaves nothing more behind.
    cache.step({slot: 400})
    cache.step({slot: 400})
    cache.step({slot: 250})
    bench.check_books()


def test_growth_needs_no_more_than_the_window_and_a_page(open_bench):
    bench = open_bench(grouped_spec(), pages=2 * 8 + 4 * 3)
    cache = bench.cache
    slot = cache.admit(128)
    for length in range(129, 1025):
        cache.step({slot: length})
    bench.check_books()


def test_a_chunked_prompt_needs_its_window_and_a_chunk(open_bench):
    bench = open_bench(grouped_spec(), pages=2 * 8 + 4 * 6)
    cache = bench.cache
    slot = cache.acquire(1024)
    for end in range(128, 1025, 128):
        cache.step({slot: end})
    bench.check_books()


def test_no_page_goes_before_the_kernels_that_read_it():
    with KVCache(
        grouped_spec(max_tokens=16384),
        device="cpu",
        driver="cumem-emulated",
        memory=32 * (2 << 20),
        layout="layer",
        background=False,
    ) as cache:
        slot = cache.admit(4096)
        kernel = gpu.launch_kernel(0, 0)
        # Tokens 0 to 2047 fill a page of the windowed layers, and none of the other.
        cache.step({slot: 4097})
        assert cache.stats().pages_quarantined == 4
        cache.step({slot: 4098})
        assert cache.stats().pages_quarantined == 4
        gpu.release_kernel(kernel)
        cache.step({slot: 4099})
        assert cache.stats().pages_quarantined == 0
        assert cache.live_pages() == {slot: held(cache, 4099)}


def test_a_fork_shares_the_pages_of_every_group(open_bench):
    bench = open_bench(grouped_spec(), pages=256, shares=True)
    cache = bench.cache
    slot = cache.admit(64)
    for length in range(65, 331):
        cache.step({slot: length})
        for layer in range(3):
            bench.arrays(layer)[0][slot, length - 1] = length
    fork = cache.fork(slot)
    for layer, first in ((0, 331 - WINDOW), (1, 65), (2, 331 - WINDOW)):
        rows = bench.arrays(layer)[0]
        assert rows[fork, first - 1 : 330, 0, 0].tolist() == list(range(first, 331))
    with pytest.raises(LengthError, match="rollback"):
        cache.fork(slot, 200)
    # What is shared is counted once: the fork has the tails of its own alone.
    assert bench.cache.stats().pages_live == held(cache, 330) + 2 + 4
    cache.release(slot)
    cache.step({fork: 331})
    assert bench.arrays(1)[0][fork, 64:330, 0, 0].tolist() == list(range(65, 331))


def test_the_limit_moves_for_all_groups(open_bench):
    bench = open_bench(grouped_spec(), pages=64)
    cache = bench.cache
    cache.admit(256)
    cache.release(cache.admit(512))
    # Nothing of the prompt is behind a window before the first step.
    needed = 2 * 2 + 4 * 4
    with pytest.raises(LimitError, match="below the"):
        cache.resize(8 * cache.page_size)
    assert cache.resize(needed * cache.page_size) <= needed * cache.page_size
    with pytest.raises(OutOfMemory):
        cache.admit(64)
    cache.resize(64 * cache.page_size)
    cache.admit(64)
    bench.check_books()


def test_one_group_without_a_window_is_a_cache_as_before(open_bench):
    flat = CacheSpec(2, 4, 64, "float32", max_slots=4, max_tokens=1024, guard_tokens=0)
    one = CacheSpec(
        groups=[LayerGroup(range(2), kv_heads=4, head_dim=64)],
        dtype="float32",
        max_slots=4,
        max_tokens=1024,
        guard_tokens=0,
    )
    counts = []
    for spec in (flat, one):
        bench = open_bench(spec, pages=64)
        slots = [bench.cache.admit(n) for n in (10, 200, 300)]
        for length in range(201, 500):
            bench.cache.step({slots[1]: length})
        bench.cache.release(slots[0])
        bench.cache.admit(64)
        s = bench.cache.stats()
        counts.append((s.map_calls, s.map_batches, s.unmap_calls, s.pages_live, s.slabs))
    assert counts[0] == counts[1]


def test_what_takes_layers_that_are_alike_says_so():
    spec = grouped_spec()
    with pytest.raises(SpecError, match="parts"):
        BlockPool(spec, device="cpu", memory="4MiB")
    with KVCache(spec, device="cpu", memory="4MiB", page_size="64K") as cache:
        assert "2 layers of 4x64 and 1 layers of 2x64" in repr(cache)
        assert len(cache.geometries) == 2
        with pytest.raises(SpecError, match="geometries"):
            _ = cache.geometry


def test_strict_poisons_what_a_window_left_behind():
    with KVCache(
        grouped_spec(),
        device="cpu",
        page_size="64K",
        layout="layer",
        memory="8MiB",
        strict=True,
        background=False,
    ) as cache:
        keys = cache.layer(0, np.from_dlpack)[0]
        slot = cache.admit(200)
        keys[slot, :200] = 7
        cache.step({slot: 201})
        first = 201 - WINDOW
        assert np.isnan(keys[slot, 64:first]).all()
        assert (keys[slot, first:200] == 7).all()


class Reference:
    """An uncached model of the same slots: the patterns that their tokens must have."""

    def __init__(self, bench, generator):
        self.bench = bench
        self.generator = generator
        self.tokens = {}  # slot -> the pattern of each token
        self.least = {}  # slot -> the least length that windows allow

    def write(self, slot, first):
        for layer in range(3):
            for tensor in self.bench.arrays(layer):
                pattern = np.array(self.tokens[slot][first:], dtype=np.float32)
                tensor[slot, first : first + len(pattern)] = pattern[:, None, None]

    def check(self):
        for slot, pattern in self.tokens.items():
            length = len(pattern)
            for layer in range(3):
                # What the next token sees beside itself.
                first = 0 if layer == 1 else max(0, length - WINDOW + 1)
                for tensor in self.bench.arrays(layer):
                    assert tensor[slot, first:length, 0, 0].tolist() == pattern[first:], (
                        slot,
                        layer,
                    )

    def new(self, count):
        return [float(self.generator.randrange(1, 1 << 20)) for _ in range(count)]

    def admit(self):
        count = self.generator.choice([1, 30, 64, 200, 500])
        try:
            slot = self.bench.cache.admit(count)
        except (OutOfMemory, OutOfSlots):
            return
        for layer in range(3):
            for tensor in self.bench.arrays(layer):
                assert not tensor[slot, :count].any(), "another request's tokens"
        self.tokens[slot], self.least[slot] = self.new(count), 0
        self.write(slot, 0)

    def grow(self):
        chosen = self.generator.sample(sorted(self.tokens, key=int), len(self.tokens) // 2 + 1)
        more = {slot: self.generator.choice([1, 1, 1, 17, 130]) for slot in chosen}
        wanted = {slot: min(1024, len(self.tokens[slot]) + more[slot]) for slot in chosen}
        for slot, length in wanted.items():
            before = len(self.tokens[slot])
            # Also where the step fails for want of memory.
            if length > before >= WINDOW:
                self.least[slot] = max(self.least[slot], before)
        try:
            if not self.generator.choice([self.step, self.try_step])(wanted):
                return
        except OutOfMemory:
            return
        for slot, length in wanted.items():
            before = len(self.tokens[slot])
            self.tokens[slot] += self.new(length - before)
            self.write(slot, before)

    def step(self, wanted):
        self.bench.cache.step(wanted)
        return True

    def try_step(self, wanted):
        return self.bench.cache.try_step(wanted)

    def shorten(self):
        slot = self.generator.choice(sorted(self.tokens, key=int))
        length = self.generator.randrange(len(self.tokens[slot]) + 1)
        call = self.generator.choice(
            [lambda: self.bench.cache.step({slot: length}),
             lambda: self.bench.cache.trim(slot, length)]
        )  # fmt: skip
        if length < self.least[slot]:
            with pytest.raises(LengthError):
                call()
        else:
            call()
            del self.tokens[slot][length:]

    def release(self):
        slot = self.generator.choice(sorted(self.tokens, key=int))
        self.bench.cache.release(slot)
        del self.tokens[slot], self.least[slot]

    def act(self):
        acts = [self.admit]
        if self.tokens:
            acts += [self.grow, self.grow, self.grow, self.shorten, self.release]
        self.generator.choice(acts)()


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_random_requests_hold_what_a_reference_says(open_bench, seed, background):
    generator = random.Random(seed)
    bench = open_bench(grouped_spec(), pages=64, background=background)
    reference = Reference(bench, generator)
    for _ in range(250):
        reference.act()
        reference.check()
        if not background:
            bench.check_books()
    for slot in list(reference.tokens):
        bench.cache.release(slot)
    bench.cache.drain()
    s = bench.check_books()
    assert (s.pages_live, s.bytes_used, s.slots_live) == (0, 0, 0)


def scenario(bench):
    cache = bench.cache
    one = cache.admit(200)
    cache.step({one: 300})
    two = cache.admit(130)
    for length in (301, 400, 450):
        cache.step({one: length, two: length - 150})
    cache.trim(two, 290)
    cache.release(one)
    cache.admit(256)


def test_a_fault_at_any_driver_call_leaves_nothing_half_done(open_bench):
    nth = 0
    while True:
        bench = open_bench(grouped_spec(), pages=48)
        bench.faults.fail_nth(nth)
        try:
            scenario(bench)
        except (DriverError, OutOfMemory):
            pass
        else:
            break
        finally:
            bench.faults.disarm()
        cache = bench.cache
        bench.check_books()
        for slot, length in cache.live_slots().items():
            # Every group has what the length says, and goes on from there.
            cache.step({slot: min(1024, length + 70)})
            for layer in range(3):
                bench.arrays(layer)[0][slot, length : length + 70] = 1
            cache.release(slot)
        assert cache.admit(256) is not None
        bench.check_books()
        nth += 1
    assert nth > 15
