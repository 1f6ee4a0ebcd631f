# SPDX-License-Identifier: Apache-2.0
"""A slot's bytes where they lie, and slots that go from one cache to another."""

from __future__ import annotations

import numpy as np
import pytest
from checked_cache import small_spec
from test_groups import WINDOW as GROUPED_WINDOW
from test_groups import grouped_spec
from test_offload import check_layers, check_same, filled, read, spoken
from test_rings import WINDOW, fill, numbered, ring_spec, window_of
from test_state_rows import fill as fill_states
from test_state_rows import holds, state_spec

from pyvattn import (
    ArgumentError,
    KVCache,
    LengthError,
    OutOfMemory,
    SlotError,
    TensorError,
    UnsupportedError,
)
from pyvattn.swap import SlotHeader, SlotViews

torch = pytest.importorskip("torch", reason="views are tensors of torch")


@pytest.fixture
def two(open_bench, driver_name):
    """Two caches of one spec, such as one for prompts and one for decoding."""
    spec = small_spec(max_tokens=16384, guard_tokens=0)
    return [open_bench(name=driver_name, spec=spec, pages=24, shares=True) for _ in range(2)]


def moved(source, target, slot, tokens=None):
    """A slot of ``target`` with the tokens of one of ``source``, view by view."""
    sent = source.dense_views(slot, tokens)
    there, arriving = target.admit_views(sent.header)
    assert arriving.header == sent.header
    for view, size, other in zip(sent.views, sent.header.sizes, arriving.views, strict=True):
        assert view.is_contiguous()
        assert view.shape == other.shape == (size,)
        other.copy_(view)
    return there


def test_each_arena_is_one_dense_view_of_the_cache_itself(two):
    bench = two[0]
    tokens = 2 * bench.page // 1024 + 7
    slot, written = filled(bench, tokens, seed=1)
    found = bench.cache.dense_views(slot)
    assert found.header == SlotHeader(tokens, (0,), (1024,), (4,))
    assert found.header.bytes == tokens * 4096
    assert [view.shape for view in found.views] == [(tokens * 1024,)] * 4
    for view, values in zip(found.views, written, strict=True):
        np.testing.assert_array_equal(view.view(torch.float32).numpy(), values.ravel())
    found.views[0].zero_()
    assert not read(bench, slot)[0].any()


def test_a_slot_goes_to_another_cache(two):
    source, target = two
    slot, written = filled(source, source.page // 1024 + 7, seed=2)
    there = moved(source.cache, target.cache, slot)
    again = target.cache.restore(source.cache.dense_views(slot))
    source.cache.release(slot)
    filled(source, 100, seed=3)
    check_same(read(target, there), written)
    check_same(read(target, again), written)
    assert target.cache.length(there) == source.page // 1024 + 7


def test_the_first_tokens_alone_go_on_request(two):
    source, target = two
    slot, written = filled(source, 20, seed=4)
    there = moved(source.cache, target.cache, slot, 12)
    check_same(read(target, there), [values[:12] for values in written])
    with pytest.raises(LengthError, match="has 0 to 20 to copy"):
        source.cache.dense_views(slot, 21)


def test_what_windows_left_behind_takes_no_page_in_the_other_cache(open_bench, driver_name):
    spec = grouped_spec(max_tokens=16384)
    source, target = (
        open_bench(name=driver_name, spec=spec, pages=64, shares=True) for _ in range(2)
    )
    tokens = 3 * source.page // 1024 + 5
    slot, written = spoken(source, tokens, seed=5)
    for there in (
        moved(source.cache, target.cache, slot),
        target.cache.restore(source.cache.dense_views(slot)),
    ):
        check_layers(target, there, written)
        target.cache.drain()
        assert target.cache.live_pages()[there] == source.cache.live_pages()[slot]
        with pytest.raises(LengthError, match="rollback"):
            target.cache.step({there: tokens - 2})
    assert source.cache.dense_views(slot).header.fronts == (tokens - GROUPED_WINDOW, 0)


@pytest.mark.parametrize("tokens", [90, 250, 620])
def test_a_ring_goes_whole(open_bench, tokens):
    source, target = (open_bench(ring_spec(full=True), shares=True) for _ in range(2))
    slot = source.cache.admit(tokens)
    fill(source, slot, max(0, tokens - 256), tokens)
    there = moved(source.cache, target.cache, slot)
    assert target.cache.length(there) == tokens
    if tokens >= WINDOW:
        np.testing.assert_array_equal(window_of(target, there, tokens), numbered(tokens))


def test_a_state_goes_last(open_bench):
    source, target = (open_bench(state_spec()) for _ in range(2))
    slot = source.cache.admit(70)
    fill_states(source.cache, slot, 5)
    assert source.cache.dense_views(slot).header.sizes[-1] == source.cache._states.bytes
    assert holds(target.cache, moved(source.cache, target.cache, slot), 5)
    nothing = moved(source.cache, target.cache, source.cache.acquire())
    assert target.cache.length(nothing) == 0


def test_without_room_no_slot_is_taken(two):
    source, target = two
    page = source.page // 1024
    slot, _ = filled(source, 3 * page, seed=6)
    other, _ = filled(target, 5 * page, seed=7)
    views = source.cache.dense_views(slot)
    for take in (
        lambda: target.cache.admit_views(views.header),
        lambda: target.cache.restore(views),
    ):
        with pytest.raises(OutOfMemory):
            take()
        assert target.cache.live_slots() == {other: 5 * page}


def test_what_has_no_views_or_does_not_fit_is_refused(two):
    cache = two[0].cache
    slot, _ = filled(two[0], 10, seed=8)
    views = cache.dense_views(slot)
    cache.release(slot)
    with pytest.raises(SlotError):
        cache.dense_views(slot)
    with pytest.raises(ArgumentError, match="header"):
        cache.admit_views(views)
    options = {"device": "cpu", "memory": "4MiB"}
    with KVCache(small_spec(), layout="token", **options) as other:
        with pytest.raises(TensorError, match=r"arenas, 4 of 1024 bytes a token.*1 of 4096"):
            other.admit_views(views.header)
        with pytest.raises(LengthError):
            cache.admit_views(SlotHeader(16385, (0,), (1024,), (4,)))
    with KVCache(small_spec(), accounting=True, layout="layer", **options) as counting:
        for refused in (
            lambda: counting.dense_views(counting.admit(10)),
            lambda: counting.admit_views(views.header),
            lambda: counting.restore(views),
        ):
            with pytest.raises(UnsupportedError, match="accounting"):
                refused()
        assert len(counting.live_slots()) == 1


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"length": -1}, "-1"),
        ({"length": 1.5}, "1.5"),
        ({"fronts": (11,)}, "10 tokens"),
        ({"fronts": (0, 0)}, "each group"),
        ({"arenas": [4]}, "each group"),
        ({"token_bytes": ("x",)}, "'x'"),
        ({"state_bytes": None}, "None"),
    ],
)
def test_numbers_that_no_slot_has_are_refused(changes, named):
    good = {"length": 10, "fronts": (0,), "token_bytes": (1024,), "arenas": (4,)}
    assert SlotHeader(**good).bytes == 40960
    with pytest.raises(TensorError, match=named):
        SlotHeader(**{**good, **changes})


def test_views_of_both_kinds_are_in_the_order_of_their_header(two):
    slot, _ = filled(two[0], 10, seed=9)
    found = two[0].cache.dense_views(slot)
    assert isinstance(found, SlotViews)
    assert two[0].cache.offload(slot).header == found.header
    assert [len(view) for group in found.data for view in group] == list(found.header.sizes)
