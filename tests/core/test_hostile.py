# SPDX-License-Identifier: Apache-2.0
"""Arguments whose methods run Python code in the middle of a call."""

from __future__ import annotations

import array
import random
import sys
from contextlib import suppress

import numpy as np
import pytest
from checked_cache import small_spec

from pyvattn import ConfigError, Error, KVCache, LengthError, SlotError


class Number:
    """Stands for a length, and does something when asked which."""

    def __init__(self, value, act=lambda: None):
        self.value = value
        self.act = act

    def __index__(self):
        self.act()
        return self.value


@pytest.fixture
def cache():
    with KVCache(
        small_spec(max_slots=512), device="cpu", memory="64MiB", background=False
    ) as cache:
        yield cache


@pytest.fixture
def slots(cache):
    return [cache.acquire() for _ in range(512)]


@pytest.mark.parametrize("call", ["step", "prefetch"])
def test_a_dict_that_grows_while_it_is_read_is_read_as_it_was(cache, slots, call):
    lengths = {}
    lengths[slots[0]] = Number(5, lambda: lengths.update(dict.fromkeys(slots, 7)))
    lengths[slots[1]] = 6
    getattr(cache, call)(lengths)
    if call == "step":
        assert [cache.length(slot) for slot in slots[:3]] == [5, 6, 0]


def test_a_dict_that_empties_while_it_is_read_is_read_as_it_was(cache, slots):
    some = slots[:50]
    lengths = {slot: Number(i, lambda: lengths.clear()) for i, slot in enumerate(some)}
    cache.step(lengths)
    assert [cache.length(slot) for slot in some] == list(range(50))


def test_a_step_inside_a_step_changes_neither(cache, slots):
    inner = {slots[7]: 3, slots[8]: 4, slots[9]: 5}
    cache.step({slots[0]: 400, slots[1]: Number(500, lambda: cache.step(inner))})
    assert [cache.length(slots[i]) for i in (0, 1, 7, 8, 9)] == [400, 500, 3, 4, 5]


def test_a_slot_released_while_its_length_is_read_is_refused(cache, slots):
    with pytest.raises(SlotError, match="was released"):
        cache.step({slots[0]: Number(5, lambda: cache.release(slots[0]))})


@pytest.mark.parametrize("call", ["step", "prefetch", "acquire", "can_admit"])
@pytest.mark.parametrize("raised", [KeyboardInterrupt, ZeroDivisionError, SystemExit])
def test_what_index_raises_passes_through(cache, slots, call, raised):
    def fail():
        raise raised

    number = Number(1, fail)
    cache.release(slots.pop())
    argument = {slots[0]: number} if call in ("step", "prefetch") else number
    with pytest.raises(raised):
        getattr(cache, call)(argument)
    assert cache.stats().slots_live == 511


@pytest.mark.parametrize("value", [2.0, "3", None, np.array([1, 2]), Number("x"), b"4", [5]])
def test_what_is_no_whole_number_is_refused_in_one_line(cache, slots, value):
    cache.release(slots.pop())
    for call in (
        lambda: cache.step({slots[0]: value}),
        lambda: cache.prefetch({slots[0]: value}),
        lambda: cache.acquire(value),
        lambda: cache.can_admit(value),
    ):
        with pytest.raises(LengthError, match="is not a whole number of tokens") as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [2**63, -(2**70), 10**5000], ids=["2**63", "-2**70", "10**5000"])
def test_a_number_past_64_bits_is_refused(cache, slots, value):
    with pytest.raises(LengthError, match="outside what any row holds"):
        cache.step({slots[0]: value})


@pytest.mark.parametrize("kind", [np.int8, np.int64, np.uint64, Number])
def test_integers_of_every_kind_are_lengths(cache, slots, kind):
    cache.step({slots[0]: kind(9)})
    assert cache.length(slots[0]) == 9
    cache.release(slots[1])
    assert cache.can_admit(kind(9))
    cache.acquire(kind(9))


def test_a_repr_that_fails_does_not_hide_the_refusal(cache):
    class Shy:
        def __repr__(self):
            raise ValueError

    with pytest.raises(SlotError, match=r"of type Shy is not a Slot"):
        cache.step({Shy(): 1})


def test_a_repr_of_many_lines_is_shown_in_one(cache):
    class Loud:
        def __repr__(self):
            return "\x1b[31mred\n" * 99

    with pytest.raises(SlotError) as caught:
        cache.step({Loud(): 1})
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200


def test_arrays_that_cannot_be_read_are_refused(cache, slots):
    ones = np.ones(2, dtype=np.int64)
    for rows in ([0, 1], "01", None, slots):
        with pytest.raises(Error, match=r"rows.*int64"):
            cache.step_array(rows, ones)
    for rows in (np.ones(2), np.ones((1, 2), np.int64), np.ones(4, np.int64)[::2], b"01"):
        with pytest.raises(ConfigError, match="one-dimensional, contiguous int64"):
            cache.step_array(rows, ones)
    with pytest.raises(Error, match=r"lengths.*int64"):
        cache.step_array(ones, [1, 1])


def test_an_array_that_is_being_read_cannot_shrink_but_can_afterwards(cache, slots):
    rows, lengths = array.array("q", range(4)), array.array("q", [3] * 4)
    cache.step_array(rows, lengths)
    rows.pop()
    with pytest.raises(ConfigError, match="3 rows, but 4 lengths"):
        cache.step_array(rows, lengths)


@pytest.mark.parametrize("row", [-1, 512, 2**40, -(2**63)])
def test_a_row_outside_the_cache_is_named_as_it_was_given(cache, row):
    with pytest.raises(SlotError, match=rf"row {row} is not one of this cache's 512"):
        cache.step_array(np.array([row]), np.array([1]))


@pytest.mark.skipif(sys.version_info < (3, 12), reason="classes have __buffer__ from 3.12 on")
def test_a_buffer_written_in_python_may_step_itself(cache, slots):
    class Buffer:
        def __init__(self, values):
            self.values = array.array("q", values)

        def __buffer__(self, flags):
            cache.step({slots[9]: 1, slots[8]: 2})
            return memoryview(self.values)

        def __release_buffer__(self, view):
            cache.step({slots[7]: 3, slots[6]: 4})

    rows = [slot.index for slot in slots[:2]]
    cache.step_array(Buffer(rows), Buffer([400, 500]))
    expected = {0: 400, 1: 500, 9: 1, 8: 2, 7: 3, 6: 4}
    assert {i: cache.length(slots[i]) for i in expected} == expected


class Chaos:
    """Numbers, keys and mappings whose methods do something else to the cache first."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.cache = KVCache(small_spec(max_slots=24), device="cpu", memory="4MiB")
        self.slots = [self.cache.acquire() for _ in range(12)]
        self.lengths = {}
        self.depth = 0

    def act(self):
        if self.depth > 3:
            return
        self.depth += 1
        try:
            self.random.choice(
                [self.step, self.step_array, self.turn_over, self.change_dict, self.interrupt]
            )()
        finally:
            self.depth -= 1

    def number(self):
        chaos, value = self, self.random.choice([1, 40, 300, 2000, -1, 2**80])

        class Hostile(Number):
            def __del__(self):
                if chaos.random.random() < 0.2:
                    chaos.lengths.clear()

        kind = self.random.choice([int, Hostile, Hostile])
        return value if kind is int else Hostile(value, self.act)

    def step(self):
        chosen = self.random.sample(self.slots, self.random.randint(0, len(self.slots)))
        self.lengths.update({slot: self.number() for slot in chosen})
        call = self.random.choice([self.cache.step, self.cache.prefetch])
        call(self.random.choice([self.lengths, Mapping(self)]))

    def step_array(self):
        rows = array.array("q", [self.random.randint(-2, 25) for _ in range(8)])
        self.cache.step_array(rows, array.array("q", [self.random.randint(0, 99)] * 8))

    def turn_over(self):
        self.cache.release(self.slots.pop(self.random.randrange(len(self.slots))))
        self.slots.append(self.cache.acquire(self.number()))

    def change_dict(self):
        if self.lengths and self.random.random() < 0.5:
            self.lengths.popitem()
        else:
            self.lengths.update(dict.fromkeys(self.slots, 3))

    def interrupt(self):
        raise self.random.choice([KeyboardInterrupt, RuntimeError])


class Mapping:
    """Says one length, has another, and changes while it is walked."""

    def __init__(self, chaos):
        self.chaos = chaos

    def keys(self):
        return self

    def __iter__(self):
        for slot in list(self.chaos.slots):
            self.chaos.act()
            yield slot

    def __len__(self):
        self.chaos.act()
        return self.chaos.random.choice([0, 1, 10**6])

    def __getitem__(self, slot):
        return self.chaos.number()


@pytest.mark.parametrize("seed", range(40))
def test_no_mixture_of_hostile_arguments_harms_the_books(seed):
    chaos = Chaos(seed)
    with chaos.cache as cache:
        for _ in range(60):
            while len(chaos.slots) < 12:
                chaos.slots.append(cache.acquire())
            with suppress(Error, KeyboardInterrupt, RuntimeError, MemoryError):
                chaos.act()
        # Whatever was refused on the way, the cache serves.
        chaos.lengths.clear()
        for slot in cache.live_slots():
            cache.step({slot: 0})
            cache.release(slot)
        slot = cache.acquire(100)
        cache.step({slot: 100})
        cache.layer(0, np.from_dlpack)[0][slot, :100] = 1
        cache.drain()
        stats = cache.stats()
        assert (stats.slots_live, stats.bytes_used) == (1, 100 * cache.spec.token_bytes)
        books = stats.pages_free + stats.pages_mapped + stats.pages_quarantined
        assert books == stats.pages_allocated
