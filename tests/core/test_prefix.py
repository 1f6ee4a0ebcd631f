# SPDX-License-Identifier: Apache-2.0
"""Prompts that begin alike share blocks; those of another salt share none."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import pytest
from checked_cache import PAGE, Later, small_spec

from pyvattn import (
    ArgumentError,
    DriverError,
    KVCache,
    LengthError,
    LimitError,
    MemoryLimit,
    OutOfMemory,
    OutOfSlots,
    SlotError,
)
from pyvattn.prefix import Admission, PrefixIndex, PrefixStats

pytest.importorskip("torch", reason="fork() copies with torch")

# Tokens of a page.
BLOCK = 64


def numbers(count, start=1):
    return list(range(start, start + count))


class Server:
    """Requests through an index; the K of a token is a number made of its salt and history."""

    def __init__(self, bench, index):
        self.cache, self.index = bench.cache, index
        self.keys = bench.arrays()[0]

    @staticmethod
    def patterns(salt, tokens):
        made, state = [], len(salt)
        for token in tokens:
            state = (state * 31 + token * 7 + ord(salt[0])) % 65521
            made.append(state)
        return made

    def serve(self, tokens, salt="a"):
        slot, hit = self.index.admit(tokens, salt=salt)
        self.compute(slot, hit, tokens, salt)
        return slot, hit

    def compute(self, slot, begin, tokens, salt="a"):
        made = self.patterns(salt, tokens)
        assert self.keys[slot, :begin, 0, 0].tolist() == made[:begin]
        new = np.array(made[begin:], np.float32)
        self.keys[slot, begin : len(tokens)] = new.reshape(-1, 1, 1)
        self.index.publish(slot, tokens)


@pytest.fixture
def serve(open_bench):
    def open_one(**options):
        options.setdefault("spec", small_spec(guard_tokens=0))
        bench = open_bench(shares=True, **options)
        index = PrefixIndex(bench.cache)
        return bench, Server(bench, index)

    return open_one


def test_a_live_slot_is_shared_without_a_copy(serve):
    bench, server = serve(pages=64)
    prompt = numbers(300)
    first, hit = server.serve(prompt)
    assert hit == 0
    alone = bench.check_books().pages_live
    second, hit = server.serve([*prompt[:280], 5])
    assert hit == 4 * BLOCK
    assert bench.check_books().pages_live == alone + 4
    server.index.release(first)
    server.compute(second, 4 * BLOCK, [*prompt[:280], 5])


def test_a_chat_goes_on_in_its_own_row(serve):
    bench, server = serve()
    slot, _ = server.serve(numbers(150))
    said = numbers(200)
    bench.cache.step({slot: 200})
    server.compute(slot, 150, said)
    server.index.release(slot)
    before = bench.cache.stats().map_calls
    again, hit = server.serve([*said, 1, 2, 3])
    assert hit == 3 * BLOCK
    assert again is slot
    # Nothing is mapped but what the new tokens need, which is nothing.
    assert bench.cache.stats().map_calls == before


def test_a_row_that_the_device_still_reads_is_not_written_over(serve):
    _, server = serve()
    said, later = numbers(150), Later()
    slot, _ = server.serve(said)
    server.index.release(slot, after=later.fence)
    other, hit = server.serve([*said[:130], 5, 6, 7])
    assert hit == 2 * BLOCK
    assert other is not slot
    assert server.keys[slot, :150, 0, 0].tolist() == server.patterns("a", said)
    later.come()
    server.index.release(other)
    assert server.serve([*said[:130], 8])[0] in (slot, other)


def test_another_salt_or_history_finds_nothing(serve):
    _, server = serve()
    prompt = numbers(200)
    server.serve(prompt, "a")
    assert server.serve(prompt, "b")[1] == 0
    assert server.serve([9, *prompt[1:]], "a")[1] == 0
    assert server.serve(prompt, "a")[1] == 3 * BLOCK


def test_bytes_and_text_are_different_salts(serve):
    _, server = serve()
    slot, _ = server.index.admit(numbers(100), salt=b"a")
    server.index.publish(slot, numbers(100))
    found = server.index.admit(numbers(100), salt="a")
    assert found == Admission(found.slot, 0)
    assert server.index.admit(numbers(100), salt=b"a").hit == BLOCK


def test_one_token_is_always_left_to_compute(serve):
    _, server = serve()
    server.serve(numbers(2 * BLOCK))
    assert server.serve(numbers(2 * BLOCK))[1] == BLOCK
    assert server.serve(numbers(2 * BLOCK + 1))[1] == 2 * BLOCK


def test_what_was_not_published_is_not_found(serve):
    bench, server = serve()
    slot, _ = server.index.admit(numbers(200))
    assert server.index.admit(numbers(200)).hit == 0
    server.index.publish(slot, numbers(130))
    assert server.index.admit(numbers(200)).hit == 2 * BLOCK
    other, _ = server.index.admit(numbers(200, 5000))
    server.index.publish(other, numbers(200, 5000))
    server.index.forget(other)
    bench.cache.step({other: 10})
    server.index.release(other)
    assert server.index.stats().kept_slots == 0


def test_kept_slots_never_make_anything_fail(serve):
    bench, server = serve(pages=5 * 4)
    slot, _ = server.serve(numbers(300))
    server.index.release(slot)
    assert server.index.stats().kept_slots == 1
    assert bench.cache.can_admit(320)
    assert not bench.cache.can_admit(321)
    # Another prompt takes the memory, through the index or not.
    other = bench.cache.admit(320)
    assert not server.keys[other, :320].any()
    assert server.index.stats().kept_slots == 0
    assert server.index.stats().evicted_slots == 1
    bench.cache.release(other)
    slot, hit = server.serve(numbers(300))
    assert hit == 0
    server.index.release(slot)
    assert bench.cache.resize(4 * 4 * bench.page) <= 4 * 4 * bench.page
    with pytest.raises(LimitError):
        bench.cache.resize(1)


def test_kept_slots_never_take_the_last_row(serve):
    bench, server = serve()
    for start in range(1, 5):
        slot, _ = server.serve(numbers(100, start))
        server.index.release(slot)
    assert server.index.stats().kept_slots == 4
    live = [bench.cache.acquire(0) for _ in range(4)]
    with pytest.raises(OutOfSlots):
        bench.cache.acquire(0)
    bench.cache.release(live.pop())
    server.serve(numbers(100))


def test_the_longest_unused_goes_first(serve):
    bench, server = serve()
    for start in (1, 1000, 2000):
        slot, _ = server.serve(numbers(200, start))
        server.index.release(slot)
    slot, hit = server.serve([*numbers(100), 7])
    assert hit == BLOCK
    server.index.release(slot)
    # The one row that is free, and the one that was unused for longest.
    taken = [bench.cache.acquire(0) for _ in range(2)]
    assert len(taken) == 2
    assert server.serve(numbers(200, 2000))[1] == 3 * BLOCK
    assert server.serve(numbers(200, 1000))[1] == 0


def test_the_only_row_that_is_left_is_taken_over(serve):
    bench, server = serve(spec=small_spec(guard_tokens=0, max_slots=1), pages=20)
    slot, _ = server.serve(numbers(300))
    server.index.release(slot)
    slot, hit = server.serve([*numbers(100), 7])
    assert hit == BLOCK
    bench.check_books()
    # What it wrote over is found no more.
    server.index.release(slot)
    assert server.serve(numbers(300))[1] == BLOCK


def test_a_row_whose_blocks_others_have_is_not_taken_over(serve):
    _, server = serve(spec=small_spec(guard_tokens=0, max_slots=2))
    said = numbers(200)
    kept, _ = server.serve(said)
    live, hit = server.serve([*said, 5])
    assert hit == 3 * BLOCK
    server.index.release(kept)
    # No row is left: the kept one goes, and nothing of it can be written over.
    _, hit = server.serve([*said[:100], 9, *numbers(120, 500)])
    assert hit == 0
    assert server.keys[live, :201, 0, 0].tolist() == server.patterns("a", [*said, 5])


def test_as_many_kept_slots_go_as_it_takes(serve):
    bench, server = serve(pages=4 * 4)
    for start in (1, 1000, 2000):
        server.index.release(server.serve(numbers(70, start))[0])
    bench.cache.admit(4 * BLOCK)
    assert server.index.stats().evicted_slots == 3


def test_a_limit_that_falls_takes_kept_slots():
    limit = MemoryLimit(16 * PAGE)
    with KVCache(
        small_spec(guard_tokens=0), device="cpu", page_size=PAGE, layout="layer", memory=limit
    ) as cache:
        index = PrefixIndex(cache)
        for start in (1, 1000):
            slot, _ = index.admit(numbers(100, start))
            index.publish(slot, numbers(100, start))
            index.release(slot)
        limit.set_limit(8 * PAGE)
        assert cache.give_back() <= 8 * PAGE
        assert index.stats().kept_slots == 1


def test_two_kept_rows_of_the_same_tokens_are_one_too_many(serve):
    _, server = serve()
    slots = [server.serve(numbers(200))[0] for _ in range(3)]
    for slot in slots:
        server.index.release(slot)
    assert server.index.stats().kept_slots == 1


def test_calls_that_fail_leave_the_index_as_it_was(serve):
    bench, server = serve(pages=64)
    prompt = numbers(300)
    slot, _ = server.serve(prompt)
    server.index.release(slot)
    for nth in range(3):
        bench.faults.fail_nth(nth)
        try:
            got = server.index.admit([*prompt[:200], 5])
            server.index.release(got.slot)
        except DriverError:
            pass
        bench.faults.disarm()
        assert (server.keys[slot, :300, 0, 0] == Server.patterns("a", prompt)).all()
    assert server.serve([*prompt, 5])[1] == 4 * BLOCK


def test_bad_calls_are_refused_by_name(serve):
    bench, server = serve()
    slot, _ = server.serve(numbers(200))
    with pytest.raises(ArgumentError, match="salt=3"):
        server.index.admit([1], salt=3)
    with pytest.raises(ArgumentError, match="token ids"):
        server.index.admit("text")
    with pytest.raises(LengthError, match="tokens=2"):
        server.index.admit([1, 2, 3], 2)
    stranger = bench.cache.acquire(0)
    for call in (server.index.release, server.index.forget):
        with pytest.raises(SlotError):
            call(stranger)
    server.index.release(slot)
    with pytest.raises(SlotError):
        server.index.release(slot)


def test_closing_the_index_gives_everything_back(serve):
    bench, server = serve()
    slot, _ = server.serve(numbers(200))
    server.index.release(slot)
    server.index.close()
    bench.cache.drain()
    assert bench.check_books().pages_live == 0
    bench.cache.admit(100)


class Shelf:
    """Keeps slots as an index would."""

    def __init__(self, cache, slots):
        self.cache, self.slots = cache, slots

    def give_up(self):
        if not self.slots:
            return False
        self.cache.release(self.slots.pop(0))
        return True

    def kept_pages(self):
        pages = self.cache.live_pages()
        return sum(pages[slot] for slot in self.slots)


def test_anybody_may_keep_slots_for_later(open_bench):
    bench = open_bench(small_spec(guard_tokens=0), pages=5 * 4)
    cache = bench.cache
    shelf = Shelf(cache, [cache.admit(100), cache.admit(100)])
    cache.add_keeper(shelf)
    assert not cache.can_admit(321)
    assert len(shelf.slots) == 2
    cache.step({cache.acquire(): 192})
    assert len(shelf.slots) == 1
    cache.remove_keeper(shelf)
    with pytest.raises(OutOfMemory):
        cache.admit(150)
    assert len(shelf.slots) == 1


def test_counts_are_those_of_requests_and_tokens(serve):
    _, server = serve()
    server.serve(numbers(200))
    server.serve(numbers(200))
    expected = PrefixStats(requests=2, hits=1, tokens=400, hit_tokens=3 * BLOCK)
    assert server.index.stats() == expected


@dataclass
class Request:
    tokens: list[int]
    salt: str


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("background", [False, True])
def test_random_requests_read_what_they_would_have_computed(serve, seed, background):
    source = random.Random(seed)
    spec = small_spec(guard_tokens=0, max_slots=6)
    bench, server = serve(spec=spec, pages=4 * 24, background=background)
    cache, index = bench.cache, server.index
    live: dict[object, Request] = {}
    hits = 0

    def prompt():
        # Few beginnings, so that prompts have much in common.
        family = source.randrange(3)
        tokens = [family] * source.choice([70, 130, 260])
        return tokens + [source.randrange(2) for _ in range(source.randint(1, 90))]

    for _ in range(150):
        choice = source.randrange(6)
        slot = source.choice(list(live)) if live else None
        try:
            if choice <= 1:
                request = Request(prompt(), source.choice("ab"))
                taken, hit = server.serve(request.tokens, request.salt)
                live[taken] = request
                hits += hit > 0
            elif slot is None:
                continue
            elif choice == 2:
                index.release(slot)
                del live[slot]
            elif choice == 3:
                # Cancelled before it published all it has.
                index.forget(slot)
                index.release(slot)
                del live[slot]
            elif choice == 4:
                fork = cache.fork(slot)
                made = Server.patterns(live[slot].salt, live[slot].tokens)
                assert server.keys[fork, : len(made), 0, 0].tolist() == made
                cache.trim(fork, front=source.randint(0, len(made)))
                cache.release(fork)
            else:
                request = live[slot]
                have = len(request.tokens)
                new = [source.randrange(3) for _ in range(source.randint(1, 60))]
                if have + len(new) <= cache.spec.max_tokens:
                    cache.step({slot: have + len(new)})
                    request.tokens = request.tokens + new
                    server.compute(slot, have, request.tokens, request.salt)
        except (OutOfMemory, OutOfSlots):
            pass
        for each, request in live.items():
            made = Server.patterns(request.salt, request.tokens)
            assert server.keys[each, : len(made), 0, 0].tolist() == made
        if not background:
            bench.check_books()
    assert hits > 5
    for slot in list(live):
        index.release(slot)
    live.clear()
    index.close()
    cache.drain()
    assert bench.check_books().pages_live == 0
