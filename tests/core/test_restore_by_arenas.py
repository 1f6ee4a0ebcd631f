# SPDX-License-Identifier: Apache-2.0
"""A restore into many arenas, or behind windows, copies some arenas while it maps the next."""

from __future__ import annotations

import pytest
from checked_cache import small_spec
from test_groups import grouped_spec
from test_restore_in_pieces import Watched
from test_rings import ring_spec
from test_state_rows import state_spec

from pyvattn import slot_copies

torch = pytest.importorskip("torch", reason="restore() copies with torch")

MOST_COPIES = 64


@pytest.fixture
def open_watched():
    opened = []

    def open_one(spec, memory):
        opened.append(Watched(spec, memory))
        return opened[-1]

    yield open_one
    for each in opened:
        each.cache.close()


def filled(cache, tokens, value=7):
    """A slot whose every byte of every arena has a value."""
    slot = cache.admit(tokens)
    for arena in arenas(cache):
        arena[slot.index, : held(cache, slot)] = value
    return slot


def arenas(cache):
    return [cache._tensors.arena(index, None) for index in range(count(cache))]


def count(cache):
    states = cache._states.arenas if cache._states is not None else 0
    return states + sum(each.arenas for each in cache.geometries)


def held(cache, slot):
    """Bytes that are there from the start of the row in every arena."""
    least = []
    for each in cache.geometries:
        least.append(each.token_bytes * min(cache.length(slot), each.ring_tokens or 1 << 30))
    if cache._states is not None:
        least.append(cache._states.bytes)
    return min(least)


def sizes(turns):
    return [size for _, copies in turns for size in copies]


@pytest.mark.parametrize(("layers", "at_once", "pieces"), [(32, 16, 1), (16, 16, 2), (8, 16, 4)])
def test_as_many_tokens_at_a_time_as_keep_to_64_copies(open_watched, layers, at_once, pieces):
    # 64 MiB are four steps.
    tokens = (64 << 20) // (2 * layers * 1024)
    watched = open_watched(small_spec(layers=layers, max_tokens=tokens, guard_tokens=0), 256 << 20)
    slot = filled(watched.cache, tokens)
    back, turns = watched.restored(watched.cache.offload(slot))
    size = tokens * 1024 // pieces
    assert turns == [[at_once * size, [size] * at_once]] * 4
    assert len(sizes(turns)) <= MOST_COPIES
    for arena in arenas(watched.cache):
        assert (arena[back.index, : tokens * 1024] == 7).all()


def test_more_arenas_than_that_take_a_copy_each(open_watched):
    tokens = (32 << 20) // (80 * 1024)
    watched = open_watched(small_spec(layers=40, max_tokens=tokens, guard_tokens=0), 128 << 20)
    _, turns = watched.restored(watched.cache.offload(filled(watched.cache, tokens)))
    assert [len(copies) for _, copies in turns] == [40, 40]


@pytest.mark.parametrize("windowed", ["window", "ring", "state"])
def test_groups_come_back_by_arenas(open_watched, monkeypatch, windowed):
    monkeypatch.setattr(slot_copies, "_LEAST_STEP", 1 << 16)
    if windowed == "state":
        # As with many arenas: without room for a copy of each for two pieces.
        monkeypatch.setattr(slot_copies, "_MOST_COPIES", 2)
    spec = {"window": grouped_spec, "ring": lambda: ring_spec(full=True), "state": state_spec}
    watched = open_watched(spec[windowed](), 64 << 20)
    cache, tokens = watched.cache, 700
    slot = filled(cache, tokens)
    kept = cache.offload(slot)
    back, turns = watched.restored(kept)
    copied = sizes(turns)
    assert len(copied) == count(cache)
    assert sum(copied) == kept.bytes
    # No two arenas are mapped before the first of them is copied.
    assert [len(copies) for size, copies in turns] == [1] * count(cache)
    for arena in arenas(cache):
        assert (arena[back.index, : held(cache, back)] == 7).all()


def test_whoever_is_told_of_a_part_may_use_the_cache(open_watched, monkeypatch):
    """No lock is held while copies are launched: a finalizer may run then, and release a slot."""
    monkeypatch.setattr(slot_copies, "_LEAST_STEP", 1 << 16)
    for spec in (small_spec(), grouped_spec()):
        monkeypatch.setattr(slot_copies, "_MOST_COPIES", 2)
        watched = open_watched(spec, 64 << 20)
        cache = watched.cache
        kept = cache.offload(filled(cache, 700))
        others = []

        def seen(*arguments, cache=cache, others=others, copy=cache._tensors.fill):
            others.append(cache.admit(100))
            cache.step({others[-1]: 200})
            cache.release(others.pop())
            copy(*arguments)

        monkeypatch.setattr(cache._tensors, "fill", seen)
        _, turns = watched.restored(kept)
        assert len(turns) > 1
