# SPDX-License-Identifier: Apache-2.0
"""Slots whose tokens go to host memory and come back, on every driver."""

from __future__ import annotations

import numpy as np
import pytest
from checked_cache import small_spec
from test_groups import WINDOW, grouped_spec

from pyvattn import (
    ArgumentError,
    KVCache,
    LengthError,
    OutOfMemory,
    SlotError,
    TensorError,
    UnsupportedError,
)

pytest.importorskip("torch", reason="offload() copies with torch")


@pytest.fixture
def bench(open_bench, driver_name):
    return open_bench(
        name=driver_name, spec=small_spec(max_tokens=16384, guard_tokens=0), pages=24, shares=True
    )


def filled(bench, tokens, seed):
    """A slot with random K and V in both layers, and what they are."""
    slot = bench.cache.admit(tokens)
    draw = np.random.default_rng(seed)
    written = []
    for layer in range(2):
        for tensor in bench.arrays(layer):
            values = draw.random((tokens, 4, 64), dtype=np.float32)
            tensor[slot, :tokens] = values
            written.append(values)
    return slot, written


def read(bench, slot, first=0):
    end = bench.cache.length(slot)
    return [tensor[slot, first:end] for layer in range(2) for tensor in bench.arrays(layer)]


def check_same(found, written):
    for a, b in zip(found, written, strict=True):
        np.testing.assert_array_equal(a, b)


def test_tokens_come_back_as_they_were_in_another_slot(bench):
    tokens = bench.page // 1024 + 7
    slot, written = filled(bench, tokens, seed=1)
    kept = bench.cache.offload(slot)
    assert kept.ready
    assert (kept.length, kept.fronts) == (tokens, (0,))
    # A token takes 1 KiB in each of four arenas, and each is one run of bytes.
    assert kept.bytes == tokens * 4096
    assert [each.shape for each in kept.data] == [(4, tokens * 1024)]
    bench.cache.release(slot)
    other, others = filled(bench, tokens, seed=2)
    back = bench.cache.restore(kept)
    again = bench.cache.restore(kept)
    assert bench.cache.length(back) == tokens
    check_same(read(bench, back), written)
    check_same(read(bench, again), written)
    check_same(read(bench, other), others)


def test_a_fork_is_copied_whole_and_comes_back_on_its_own(bench):
    tokens = bench.page // 1024 + 7
    slot, written = filled(bench, tokens, seed=3)
    kept = bench.cache.offload(bench.cache.fork(slot))
    back = bench.cache.restore(kept)
    for tensor in bench.arrays(0):
        tensor[back, :tokens] = 0
    check_same(read(bench, slot), written)
    check_same(read(bench, back)[2:], written[2:])


def test_what_nobody_reads_any_more_is_neither_copied_nor_kept(bench):
    page = bench.page // 1024
    slot, written = filled(bench, 2 * page + 5, seed=4)
    front = page + 3
    bench.cache.trim(slot, front=front)
    kept = bench.cache.offload(slot)
    assert kept.bytes == (page + 2) * 4096
    bench.cache.release(slot)
    back = bench.cache.restore(kept)
    check_same(read(bench, back, front), [values[front:] for values in written])
    assert bench.cache.live_pages() == {back: 8}


@pytest.fixture
def windowed(open_bench, driver_name):
    # Two pages of the windowed layers.
    spec = grouped_spec(max_tokens=16384)
    return open_bench(name=driver_name, spec=spec, pages=64, shares=True)


def spoken(bench, tokens, seed):
    """A slot that has left behind what its windows do not need, and what layers should have."""
    cache = bench.cache
    slot = cache.admit(tokens - 1)
    cache.step({slot: tokens})
    draw = np.random.default_rng(seed)
    written = []
    for layer in range(3):
        first = 0 if layer == 1 else tokens - WINDOW
        for tensor in bench.arrays(layer):
            values = draw.random((tokens - first, *tensor.shape[2:]), dtype=np.float32)
            tensor[slot, first:tokens] = values
            written.append((layer, first, values))
    return slot, written


def check_layers(bench, slot, written):
    pairs = iter(written)
    for layer in range(3):
        for tensor in bench.arrays(layer):
            _, first, values = next(pairs)
            np.testing.assert_array_equal(tensor[slot, first : first + len(values)], values)


def test_every_group_comes_back_with_what_it_had(windowed):
    bench, cache = windowed, windowed.cache
    tokens = 3 * bench.page // 1024 + 5
    slot, written = spoken(bench, tokens, seed=8)
    kept = cache.offload(slot)
    assert kept.fronts == (tokens - WINDOW, 0)
    assert kept.bytes == WINDOW * 4 * 1024 + tokens * 2 * 512
    held = cache.live_pages()[slot]
    cache.release(slot)
    cache.release(spoken(bench, tokens, seed=9)[0])
    back = cache.restore(kept)
    check_layers(bench, back, written)
    cache.drain()
    assert cache.live_pages() == {back: held}
    # As before, no length may fall to where a window is not whole.
    with pytest.raises(LengthError, match="rollback"):
        cache.step({back: tokens - 2})
    cache.step({back: tokens + 1})
    check_layers(bench, back, written)


def test_the_first_tokens_alone_are_copied_on_request(bench):
    slot, written = filled(bench, 20, seed=10)
    kept = bench.cache.offload(slot, 12)
    assert (kept.length, kept.bytes) == (12, 12 * 4096)
    back = bench.cache.restore(kept)
    assert bench.cache.length(back) == 12
    check_same(read(bench, back), [values[:12] for values in written])
    bench.cache.trim(slot, front=10)
    for tokens in (9, 21, -1, "all"):
        with pytest.raises(LengthError, match=r"tokens=.* has 10 to 20 to copy"):
            bench.cache.offload(slot, tokens)


def test_each_arena_is_one_copy(bench):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Copies(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.count += function.overloadpacket._qualified_op_name == "aten::copy_"
            return function(*args, **(kwargs or {}))

    slot, _ = filled(bench, 2 * bench.page // 1024 + 5, seed=11)
    with Copies() as there:
        kept = bench.cache.offload(slot)
    with Copies() as back:
        bench.cache.restore(kept)
    assert there.count == back.count == 4


def test_a_slot_without_tokens_comes_back_without_tokens(bench):
    kept = bench.cache.offload(bench.cache.acquire())
    assert kept.bytes == 0
    assert bench.cache.length(bench.cache.restore(kept)) == 0


def test_without_memory_to_come_back_to_nothing_changes(bench):
    page = bench.page // 1024
    slot, written = filled(bench, 3 * page, seed=5)
    kept = bench.cache.offload(slot)
    bench.cache.release(slot)
    other, _ = filled(bench, 5 * page, seed=6)
    with pytest.raises(OutOfMemory):
        bench.cache.restore(kept)
    assert bench.cache.live_slots() == {other: 5 * page}
    bench.cache.release(other)
    check_same(read(bench, bench.cache.restore(kept)), written)


def test_what_cannot_be_copied_or_come_back_is_refused(bench):
    slot, _ = filled(bench, 10, seed=7)
    kept = bench.cache.offload(slot)
    bench.cache.release(slot)
    with pytest.raises(SlotError):
        bench.cache.offload(slot)
    with pytest.raises(ArgumentError, match="source"):
        bench.cache.restore(slot)
    spec = small_spec()
    with (
        KVCache(spec, device="cpu", memory="4MiB", layout="token") as other,
        pytest.raises(TensorError, match=r"arenas, 4 of 1024 bytes a token.*1 of 4096"),
    ):
        other.restore(kept)
    assert other.closed
    with (
        KVCache(spec, device="cpu", memory="4MiB", accounting=True) as counting,
        pytest.raises(UnsupportedError, match="accounting"),
    ):
        counting.offload(counting.admit(10))
