# SPDX-License-Identifier: Apache-2.0
"""Prompts that begin alike where layers keep states: a hit has the states of where it ends."""

from __future__ import annotations

import random
from contextlib import suppress

import numpy as np
import pytest
from checked_cache import Later, small_spec
from test_groups import grouped_spec

from pyvattn import LengthError, OutOfMemory, OutOfSlots, SlotError, StateGroup
from pyvattn.prefix import PrefixIndex

pytest.importorskip("torch", reason="states are copied with torch")

STATES = [
    StateGroup([0, 2], {"conv": ((3, 50), "float32"), "ssm": ((10, 100, 77), "float32")}),
    StateGroup([1], {"conv": ((7,), "float32")}),
]
# 64 tokens fill a page of each arena, and the states of a request these.
BLOCK, STATE_PAGES = 64, 10
SALTED = {"a": 1, "b": 2}


def numbers(count, start=1):
    return list(range(start, start + count))


def patterns(salt, tokens):
    """What the model makes of each token: a number made of its salt and history."""
    made, state = [], SALTED[salt]
    for token in tokens:
        state = (state * 31 + token * 7 + 1) % 65521
        made.append(state)
    return made


class Server:
    """Requests through an index, held against what an uncached model would have computed."""

    def __init__(self, bench, windows=()):
        self.cache, self.index = bench.cache, PrefixIndex(bench.cache)
        self.windows = windows or [None] * bench.cache.spec.layers
        self.layers = [bench.arrays(layer) for layer in range(bench.cache.spec.layers)]
        states = [self.cache.state(layer, np.from_dlpack) for layer in range(3)]
        self.states = [tensor for state in states for tensor in state.values()]

    def check(self, slot, tokens, salt="a"):
        """The states, and what the next token of every layer sees, are what they should be."""
        made = patterns(salt, tokens)
        for tensor in self.states:
            assert (tensor[slot.index] == (made[-1] if made else 0)).all()
        for window, tensors in zip(self.windows, self.layers, strict=True):
            first = max(0, len(tokens) - window + 1) if window else 0
            for tensor in tensors:
                assert tensor[slot, first : len(tokens), 0, 0].tolist() == made[first:]

    def compute(self, slot, begin, tokens, salt="a"):
        """Run the tokens from ``begin`` on: K and V of each, and one state after the last."""
        made = np.array(patterns(salt, tokens)[begin:], np.float32)
        for tensors in self.layers:
            for tensor in tensors:
                tensor[slot, begin : len(tokens)] = made.reshape(-1, 1, 1)
        for tensor in self.states:
            tensor[slot.index] = made[-1]

    def serve(self, tokens, salt="a"):
        slot, done = hit = self.index.admit(tokens, salt=salt)
        self.check(slot, tokens[:done], salt)
        while done < len(tokens):
            end = self.index.next_snapshot(slot, done) or len(tokens)
            assert done < end <= len(tokens)
            self.compute(slot, done, tokens[:end], salt)
            self.index.publish(slot, tokens[:end])
            done = end
        return hit

    def hit_of(self, tokens, salt="a"):
        return self.index.hit_of(tokens, salt=salt)

    def say(self, slot, tokens, count, salt="a"):
        """Decode ``count`` tokens, and return all there are."""
        for _ in range(count):
            tokens = [*tokens, 7]
            self.cache.step({slot: len(tokens)})
            self.compute(slot, len(tokens) - 1, tokens, salt)
        return tokens

    def done(self, slot, tokens):
        self.index.publish(slot, tokens)
        self.index.release(slot)


@pytest.fixture
def serve(open_bench):
    def open_one(**options):
        spec = small_spec(max_slots=options.pop("slots", 8), states=STATES)
        bench = open_bench(spec, shares=True, **{"pages": 512, **options})
        return bench, Server(bench)

    return open_one


def test_a_prompt_is_found_at_its_last_whole_block(serve):
    bench, server = serve()
    prompt = numbers(200)
    slot, hit = server.serve(prompt)
    assert hit == 0
    stats = server.index.stats()
    assert (stats.snapshots, stats.kept_slots) == (1, 1)
    # The blocks are shared, and the states are copied.
    assert bench.check_books().pages_live == 4 * 4 + 2 * STATE_PAGES
    server.say(slot, prompt, 30)
    other, hit = server.serve([*prompt, 5])
    assert hit == 3 * BLOCK
    server.say(other, [*prompt, 5], 3)
    server.check(slot, [*prompt, *[7] * 30])
    assert server.index.stats().hit_tokens == 3 * BLOCK


def test_blocks_without_states_are_no_hit(serve):
    _, server = serve()
    prompt = numbers(300)
    server.serve(prompt)
    # Four blocks are there, and the states of none but the last.
    assert server.hit_of([*prompt[:200], 9]) == 0
    assert server.hit_of([*prompt[:256], 9]) == 256
    assert server.hit_of(prompt[:256]) == 0
    assert server.serve([*prompt[:200], 9])[1] == 0


def test_where_two_prompts_part_the_third_goes_on(serve):
    _, server = serve()
    system = numbers(2 * BLOCK + 10)
    for nth, hit in ((1, 0), (2, 0), (3, 2 * BLOCK), (4, 2 * BLOCK)):
        prompt = [*system, *numbers(100, nth * 1000)]
        slot, found = server.serve(prompt)
        assert found == hit
        server.done(slot, server.say(slot, prompt, 9))


def test_a_prompt_that_was_computed_at_once_has_no_place_to_go_on(serve):
    _, server = serve()
    prompt = numbers(200)
    slot, _ = server.index.admit(prompt)
    server.compute(slot, 0, prompt)
    server.index.publish(slot, prompt)
    assert server.index.stats().snapshots == 0
    assert server.serve([*prompt, 1])[1] == 0


def test_a_chat_goes_on_in_its_own_row_to_the_token(serve):
    bench, server = serve()
    prompt = numbers(100)
    slot, _ = server.serve(prompt)
    said = server.say(slot, prompt, 33)
    server.done(slot, said)
    before = bench.cache.stats().map_calls
    again, hit = server.serve([*said, 1, 2, 3])
    assert (again, hit) == (slot, 133)
    # No page but that of the snapshot's states.
    assert bench.cache.stats().map_calls - before <= STATE_PAGES
    server.done(again, [*said, 1, 2, 3])
    # Other words at the end: the first prompt's end is what is found.
    assert server.serve([*said[:120], 9, 9])[1] == BLOCK


def test_a_row_that_the_device_still_reads_is_copied_from(serve):
    _, server = serve()
    prompt, later = numbers(100), Later()
    slot, _ = server.serve(prompt)
    said = server.say(slot, prompt, 30)
    server.index.publish(slot, said)
    server.index.release(slot, after=later.fence)
    other, hit = server.serve([*said, 1, 2])
    assert hit == 130
    assert other is not slot
    server.check(slot, said)
    later.come()


def test_a_row_whose_states_have_seen_more_is_not_kept(serve):
    _, server = serve()
    prompt = numbers(100)
    slot, _ = server.serve(prompt)
    said = server.say(slot, prompt, 40)
    server.index.publish(slot, said[:-1])
    server.index.release(slot)
    # The end of the prompt, and not the row.
    assert server.index.stats().kept_slots == 1
    assert server.serve([*said, 1])[1] == BLOCK


def test_what_was_forgotten_is_not_found(serve):
    _, server = serve()
    prompt = numbers(200)
    slot, _ = server.serve(prompt)
    server.index.forget(slot)
    assert server.index.stats().kept_slots == 0
    assert server.serve(prompt)[1] == 0


def test_another_salt_finds_nothing(serve):
    _, server = serve()
    prompt = numbers(200)
    slot, _ = server.serve(prompt)
    server.done(slot, server.say(slot, prompt, 10))
    assert server.serve([*prompt, *[7] * 10, 1], "b")[1] == 0
    assert server.serve([*prompt, *[7] * 10, 1], "a")[1] == 210


def test_snapshots_go_before_anything_fails_the_longest_unused_first(serve):
    # Two requests of four blocks, and as much for what is kept.
    bench, server = serve(slots=8, pages=4 * (4 * 4 + STATE_PAGES))
    first, second = numbers(200), numbers(200, 1000)
    for prompt in (first, second):
        slot, _ = server.serve(prompt)
        # Its end is not known to be there.
        bench.cache.step({slot: 201})
        server.index.release(slot)
    assert server.index.stats().kept_slots == 2
    assert server.serve([*first, 1])[1] == 192
    assert server.index.give_up()
    assert server.hit_of([*first, 1]) == 192
    assert server.hit_of([*second, 1]) == 0
    slots = [bench.cache.admit(256) for _ in range(3)]
    assert server.index.stats().kept_slots == 0
    assert server.index.stats().evicted_slots >= 2
    for slot in slots:
        bench.cache.release(slot)
    bench.check_books()


def test_without_room_for_a_snapshot_the_request_goes_on(serve):
    _, server = serve(slots=1)
    prompt = numbers(200)
    slot, _ = server.serve(prompt)
    stats = server.index.stats()
    assert (stats.snapshots, stats.missed_snapshots, stats.kept_slots) == (0, 1, 0)
    server.check(slot, prompt)


def test_where_to_pause_is_asked_of_slots_that_were_admitted(serve):
    bench, server = serve()
    with pytest.raises(SlotError):
        server.index.next_snapshot(bench.cache.admit(5), 0)
    slot, _ = server.index.admit(numbers(200))
    assert server.index.next_snapshot(slot, 0) == 192
    assert server.index.next_snapshot(slot, 192) is None
    with pytest.raises(LengthError, match="tokens=-1"):
        server.index.next_snapshot(slot, -1)


class Random:
    """Requests that come, fork, speak, are trimmed, cancelled and evicted, in any order."""

    def __init__(self, server, block, source):
        self.server, self.block, self.source = server, block, source
        self.live = {}  # slot -> tokens and salt
        self.hits = 0

    def prompt(self):
        # Few beginnings, so that prompts have much in common.
        family, block = self.source.randrange(2), self.block
        tokens = [family] * self.source.choice([block + 1, 2 * block + 9, 3 * block])
        return tokens + [self.source.randrange(2) for _ in range(self.source.randint(1, 90))]

    def chosen(self):
        return self.source.choice(sorted(self.live, key=int))

    def serve(self, tokens, salt):
        slot, hit = self.server.serve(tokens, salt)
        self.live[slot] = (tokens, salt)
        self.hits += hit > 0

    def admit(self):
        self.serve(self.prompt(), self.source.choice("ab"))

    def go_on(self):
        """A turn of a chat that follows one that is done."""
        slot = self.chosen()
        tokens, salt = self.live.pop(slot)
        self.server.done(slot, tokens)
        if len(tokens) < 900:
            self.serve([*tokens, *[self.source.randrange(3) for _ in range(9)]], salt)

    def say(self):
        slot = self.chosen()
        tokens, salt = self.live[slot]
        for _ in range(self.source.choice([1, 1, 40])):
            if len(tokens) < 1024:
                tokens = self.server.say(slot, tokens, 1, salt)
                self.live[slot] = (tokens, salt)

    def fork(self):
        slot = self.chosen()
        tokens, salt = self.live[slot]
        fork = self.server.cache.fork(slot)
        self.server.check(fork, tokens, salt)
        self.server.cache.trim(fork, front=self.source.randint(0, len(tokens)))
        self.server.cache.release(fork)

    def cancel(self):
        slot = self.chosen()
        self.server.index.forget(slot)
        self.server.index.release(slot)
        del self.live[slot]

    def finish(self):
        slot = self.chosen()
        self.server.done(slot, self.live.pop(slot)[0])

    def evict(self):
        self.server.index.give_up()

    def act(self):
        acts = [self.admit, self.admit, self.evict]
        if self.live:
            acts += [self.go_on, self.say, self.say, self.fork, self.cancel, self.finish]
        with suppress(OutOfMemory, OutOfSlots):
            self.source.choice(acts)()

    def check(self):
        for slot, (tokens, salt) in self.live.items():
            self.server.check(slot, tokens, salt)


@pytest.mark.parametrize("windows", [False, True])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("background", [False, True])
def test_random_requests_read_what_they_would_have_computed(open_bench, seed, background, windows):
    make = grouped_spec if windows else small_spec
    spec = make(max_slots=8, states=STATES)
    bench = open_bench(spec, shares=True, pages=150, background=background)
    server = Server(bench, [spec.window_of(layer) for layer in range(spec.layers)])
    requests = Random(server, server.index.block_tokens, random.Random(seed))
    for _ in range(120):
        requests.act()
        requests.check()
        if not background:
            bench.check_books()
    assert requests.hits > 4
    assert server.index.stats().snapshots > 4
    for slot in requests.live:
        server.index.release(slot)
    server.index.close()
    bench.cache.drain()
    assert bench.check_books().pages_live == 0
