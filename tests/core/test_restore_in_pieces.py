# SPDX-License-Identifier: Apache-2.0
"""A restore that has much to map copies some of the tokens while it maps the next."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from checked_cache import small_spec

from pyvattn import DriverError, KVCache, OutOfMemory, StateGroup, _native, slot_copies

torch = pytest.importorskip("torch", reason="restore() copies with torch")
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

# 16 MiB in each of four arenas: four pieces.
TOKENS, PIECES, ARENAS = 16384, 4, 4
ROW_BYTES = TOKENS * 4096


def spec(**options):
    return small_spec(max_tokens=TOKENS, guard_tokens=0, **options)


def filled(cache, tokens=TOKENS):
    """A slot with random tokens, and what they are."""
    slot = cache.admit(tokens)
    draw = np.random.default_rng(1)
    for layer in range(2):
        for tensor in cache.layer(layer, np.from_dlpack):
            tensor[slot, :tokens] = draw.random((tokens, *tensor.shape[2:]), dtype=np.float32)
    return slot, contents(cache, slot)


def contents(cache, slot):
    arrays = [tensor for layer in range(2) for tensor in cache.layer(layer, np.from_dlpack)]
    return [tensor[slot, : cache.length(slot)].copy() for tensor in arrays]


def check_same(cache, slot, written):
    for found, expected in zip(contents(cache, slot), written, strict=True):
        np.testing.assert_array_equal(found, expected)


class Copies(TorchDispatchMode):
    """Calls ``seen`` with the bytes of each copy of torch."""

    def __init__(self, seen):
        super().__init__()
        self._seen = seen

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.copy_.default:
            self._seen(args[1].numel())
        return function(*args, **(kwargs or {}))


class Watched:
    """A cache on the host whose maps and copies are written down in their order."""

    def __init__(self, spec, memory=3 * ROW_BYTES):
        page = _native.driver_capabilities("host").page_sizes[0]
        self.trace = _native.TraceAdaptor(_native.make_driver("host", page))
        self.cache = KVCache.on_driver(
            spec, self.trace, layout="layer", memory=memory, background=False
        )

    def restored(self, kept):
        """Return a new slot, and [bytes mapped, then bytes copied] by turns."""
        turns = []
        mapped = self._mapped()

        def seen(size):
            nonlocal mapped
            now = self._mapped()
            if now != mapped:
                turns.append([now - mapped, []])
            elif not turns:
                turns.append([0, []])
            mapped = now
            turns[-1][1].append(size)

        with Copies(seen):
            slot = self.cache.restore(kept)
        assert self._mapped() == mapped
        return slot, turns

    def _mapped(self):
        return sum(each.length for each in self.trace.records() if each.operation == "map")


@pytest.fixture
def watched():
    made = Watched(spec())
    yield made
    made.cache.close()


def test_each_piece_is_copied_before_the_next_is_mapped(watched):
    cache = watched.cache
    slot, written = filled(cache)
    kept = cache.offload(slot)
    back, turns = watched.restored(kept)
    piece = ROW_BYTES // PIECES
    assert turns == [[piece, [piece // ARENAS] * ARENAS]] * PIECES
    assert cache.length(back) == TOKENS
    check_same(cache, back, written)


def test_what_is_mapped_already_is_copied_in_one_piece(watched):
    cache = watched.cache
    slot, written = filled(cache)
    kept = cache.offload(slot)
    cache.release(slot)
    back, turns = watched.restored(kept)
    assert turns == [[0, [ROW_BYTES // ARENAS] * ARENAS]]
    check_same(cache, back, written)


def test_what_was_left_behind_is_not_copied_by_any_piece(watched):
    cache = watched.cache
    slot, written = filled(cache)
    front = TOKENS // 2 + 3
    cache.trim(slot, front=front)
    kept = cache.offload(slot)
    back, turns = watched.restored(kept)
    assert sum(size for _, copies in turns for size in copies) == (TOKENS - front) * 4096
    for found, expected in zip(contents(cache, back), written, strict=True):
        np.testing.assert_array_equal(found[front:], expected[front:])


def test_states_come_back_once_with_the_last_piece():
    watched = Watched(spec(states=[StateGroup([0], {"s": ((5,), "float32")})]))
    with watched.cache as cache:
        slot, written = filled(cache)
        cache.state(0)["s"][slot.index] = torch.arange(5.0)
        back, turns = watched.restored(cache.offload(slot))
        assert [len(copies) for _, copies in turns] == [ARENAS] * (PIECES - 1) + [ARENAS + 1]
        assert cache.state(0)["s"][back.index].tolist() == [0, 1, 2, 3, 4]
        check_same(cache, back, written)


def test_another_thread_steps_between_and_beside_the_pieces(watched):
    """As beside admit(): neither of the two is refused."""
    cache = watched.cache
    slot, written = filled(cache)
    kept = cache.offload(slot)
    own, failures, done = cache.acquire(), [], threading.Event()

    def step():
        try:
            while not done.is_set():
                cache.step({own: 10})
                cache.step({own: 20})
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=step)
    thread.start()
    try:
        for _ in range(5):
            back = cache.restore(kept)
            check_same(cache, back, written)
            cache.trim(back, 0)
            cache.release(back)
    finally:
        done.set()
        thread.join()
    assert not failures


@pytest.fixture(params=["tokens", "arenas"])
def small(request, open_bench, driver_name, monkeypatch):
    """Open a bench for so many rows that come back one page of each arena, or one arena, a step."""

    def opened(rows):
        bench = open_bench(small_spec(max_tokens=TOKENS, guard_tokens=0), name=driver_name,
                           pages=int(rows * PIECES * ARENAS), shares=True)  # fmt: skip
        monkeypatch.setattr(slot_copies, "_LEAST_STEP", ARENAS * bench.page)
        if request.param == "arenas":
            monkeypatch.setattr(slot_copies, "_MOST_COPIES", ARENAS)
        tokens = PIECES * bench.page // 1024
        return bench, tokens, *filled(bench.cache, tokens)

    return opened


def check_clean(cache, tokens):
    """What the next request finds where tokens were copied to for nothing."""
    slot = cache.admit(tokens)
    assert not any(tensor.any() for tensor in contents(cache, slot))
    cache.trim(slot, 0)
    cache.release(slot)


@pytest.mark.parametrize("out_of_memory", [False, True])
def test_the_nth_failing_call_leaves_no_slot_and_the_copy_whole(small, out_of_memory):
    bench, tokens, slot, written = small(rows=2)
    cache = bench.cache
    kept = cache.offload(slot)
    failed_with_copies = 0
    for nth in range(100):
        copied = []
        bench.faults.fail_nth(nth, out_of_memory)
        try:
            with Copies(copied.append):
                back = cache.restore(kept)
        except (DriverError, OutOfMemory):
            bench.faults.disarm()
            failed_with_copies += bool(copied)
            assert cache.live_slots() == {slot: tokens}
            bench.check_books()
            check_clean(cache, tokens)
            back = cache.restore(kept)
        reached = not bench.faults.armed
        bench.faults.disarm()
        check_same(cache, back, written)
        check_same(cache, slot, written)
        # The next restore has to map everything again.
        cache.trim(back, 0)
        cache.release(back)
        bench.check_books()
        if not reached:
            break
    else:
        raise AssertionError("the restores never ran out of driver calls")
    # Out of memory in one call is overcome: mapping is tried again with what there is.
    assert failed_with_copies == 0 if out_of_memory else failed_with_copies >= 1


def test_a_copy_that_fails_midway_leaves_no_slot_and_nothing_behind(small):
    bench, tokens, slot, _ = small(rows=2)
    cache, copied = bench.cache, []

    def fail_at_last(size):
        copied.append(size)
        if sum(copied) == tokens * 4096:
            raise RuntimeError("a copy that fails")

    kept = cache.offload(slot)
    # What is there already is written to as well.
    cache.release(cache.admit(tokens // 2))
    with Copies(fail_at_last), pytest.raises(RuntimeError, match="a copy that fails"):
        cache.restore(kept)
    assert cache.live_slots() == {slot: tokens}
    bench.check_books()
    check_clean(cache, tokens)


def test_memory_that_runs_short_midway_is_an_error_and_leaves_no_slot(small):
    bench, tokens, slot, written = small(rows=1.5)
    cache = bench.cache
    kept = cache.offload(slot)
    copied = []
    with Copies(copied.append), pytest.raises(OutOfMemory):
        cache.restore(kept)
    # By arenas all memory is taken before the first copy.
    assert sum(copied) in (0, tokens * 4096 // 2)
    assert cache.live_slots() == {slot: tokens}
    cache.release(slot)
    check_same(cache, cache.restore(kept), written)
