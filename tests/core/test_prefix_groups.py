# SPDX-License-Identifier: Apache-2.0
"""Prompts that begin alike where layers have windows: a hit has the window before it, whole."""

from __future__ import annotations

import random

import numpy as np
import pytest
from checked_cache import Later
from test_groups import WINDOW, grouped_spec

from pyvattn import OutOfMemory, OutOfSlots
from pyvattn.prefix import PrefixIndex

pytest.importorskip("torch", reason="fork() copies with torch")

# Tokens that fill pages in both groups: 128 of the full layer, twice 64 of the others.
BLOCK = 128
SALTED = {"a": 1, "b": 2}


def numbers(count, start=1):
    return list(range(start, start + count))


def patterns(salt, tokens):
    """The K of each token: a number made of its salt and history."""
    made, state = [], SALTED[salt]
    for token in tokens:
        state = (state * 31 + token * 7 + 1) % 65521
        made.append(state)
    return made


class Server:
    """Requests through an index, held against what an uncached model would have computed."""

    def __init__(self, bench):
        self.cache, self.index = bench.cache, PrefixIndex(bench.cache)
        self.layers = [bench.arrays(layer) for layer in range(3)]

    def check(self, slot, tokens, salt="a"):
        """What the next token of every layer sees is what it should be."""
        made = patterns(salt, tokens)
        for layer, tensors in enumerate(self.layers):
            first = 0 if layer == 1 else max(0, len(tokens) - WINDOW + 1)
            for tensor in tensors:
                assert tensor[slot, first : len(tokens), 0, 0].tolist() == made[first:], layer

    def write(self, slot, begin, tokens, salt="a"):
        made = np.array(patterns(salt, tokens)[begin:], np.float32).reshape(-1, 1, 1)
        for tensors in self.layers:
            for tensor in tensors:
                tensor[slot, begin : len(tokens)] = made

    def serve(self, tokens, salt="a"):
        slot, hit = self.index.admit(tokens, salt=salt)
        self.check(slot, tokens[:hit], salt)
        self.write(slot, hit, tokens, salt)
        self.index.publish(slot, tokens)
        return slot, hit

    def say(self, slot, tokens, count, salt="a"):
        """Decode ``count`` tokens, and return all there are."""
        for _ in range(count):
            tokens = [*tokens, 7]
            self.cache.step({slot: len(tokens)})
            self.write(slot, len(tokens) - 1, tokens, salt)
        return tokens

    def done(self, slot, tokens):
        self.index.publish(slot, tokens)
        self.index.release(slot)


@pytest.fixture
def serve(open_bench):
    def open_one(**options):
        options = {"pages": 512, **options}
        spec = grouped_spec(max_slots=options.pop("slots", 8))
        bench = open_bench(spec, shares=True, **options)
        return bench, Server(bench)

    return open_one


def test_a_block_fills_pages_of_every_group(serve):
    assert serve()[1].index.block_tokens == BLOCK


def test_a_prompt_is_shared_before_its_request_goes_on(serve):
    bench, server = serve()
    prompt = numbers(400)
    server.serve(prompt)
    alone = bench.check_books().pages_live
    # The end of the prompt is kept for later: it shares all it has.
    assert server.index.stats().kept_slots == 1
    _, hit = server.serve([*prompt[:390], 5])
    assert hit == 3 * BLOCK
    # Its tail alone: a page of each arena.
    assert bench.check_books().pages_live == alone + 2 + 4


def test_a_prompt_is_found_at_its_end_after_its_window_has_moved_on(serve):
    _, server = serve()
    prompt = numbers(400)
    slot, _ = server.serve(prompt)
    server.say(slot, prompt, 300)
    assert server.serve([*prompt, 5])[1] == 3 * BLOCK


def test_where_two_prompts_part_the_third_goes_on(serve):
    _, server = serve()
    system = numbers(2 * BLOCK + 10)
    for nth, hit in ((1, 0), (2, 0), (3, 2 * BLOCK), (4, 2 * BLOCK)):
        prompt = [*system, *numbers(300, nth * 1000)]
        slot, found = server.serve(prompt)
        assert found == hit
        server.done(slot, server.say(slot, prompt, 150))


def test_a_kept_window_holds_a_window_alone(serve):
    bench, server = serve()
    prompt = numbers(5 * BLOCK + 1)
    slot, _ = server.serve(prompt)
    server.index.forget(slot)
    server.index.publish(slot, prompt)
    assert server.index.stats().kept_slots == 0
    server.index.release(slot)
    slot, hit = server.serve(prompt + numbers(1))
    assert hit == 5 * BLOCK + 1
    assert bench.check_books()


def test_a_chat_goes_on_in_its_own_row_to_the_token(serve):
    bench, server = serve()
    prompt = numbers(150)
    slot, _ = server.serve(prompt)
    said = server.say(slot, prompt, 83)
    server.done(slot, said)
    before = bench.cache.stats().map_calls
    again, hit = server.serve([*said, 1, 2, 3])
    assert (again, hit) == (slot, 233)
    # Nothing is mapped: the end of the prompt is where it was.
    assert bench.cache.stats().map_calls == before
    # Other words at the end, and the prompt's end is what is found.
    server.done(again, [*said, 1, 2, 3])
    assert server.serve([*said[:200], 9, 9])[1] == BLOCK


def test_a_row_that_the_device_still_reads_is_copied_from(serve):
    _, server = serve()
    prompt, later = numbers(300), Later()
    slot, _ = server.serve(prompt)
    said = server.say(slot, prompt, 30)
    server.index.publish(slot, said)
    server.index.release(slot, after=later.fence)
    other, hit = server.serve([*said, 1, 2])
    assert hit == 330
    assert other is not slot
    server.check(slot, said)
    later.come()


def test_a_row_that_has_not_the_window_of_what_it_published_is_not_kept(serve):
    _, server = serve()
    prompt = numbers(300)
    slot, _ = server.serve(prompt)
    server.say(slot, prompt, 200)
    server.index.release(slot)
    # The end of the prompt, and not the row.
    assert server.index.stats().kept_slots == 1


def test_what_was_forgotten_is_not_found_in_what_was_kept_of_it(serve):
    _, server = serve()
    prompt = numbers(300)
    slot, _ = server.serve(prompt)
    assert server.index.stats().kept_slots == 1
    server.index.forget(slot)
    assert server.index.stats().kept_slots == 0
    assert server.serve(prompt)[1] == 0


def test_another_salt_finds_nothing(serve):
    _, server = serve()
    prompt = numbers(300)
    slot, _ = server.serve(prompt)
    server.done(slot, server.say(slot, prompt, 10))
    assert server.serve([*prompt, *[7] * 10, 1], "b")[1] == 0
    assert server.serve([*prompt, *[7] * 10, 1], "a")[1] == 310


def test_kept_windows_never_make_anything_fail(serve):
    bench, server = serve(slots=2, pages=2 * 8 + 4 * 16)
    for start in (1, 2000, 4000):
        slot, hit = server.serve(numbers(400, start))
        assert hit == 0
        server.done(slot, numbers(400, start))
    slots = [bench.cache.acquire(0) for _ in range(2)]
    with pytest.raises(OutOfSlots):
        bench.cache.acquire(0)
    assert server.index.stats().kept_slots == 0
    for slot in slots:
        bench.cache.release(slot)
    assert bench.cache.can_admit(1024)
    bench.cache.admit(1024)
    bench.check_books()


def test_for_a_window_no_more_than_one_kept_slot_goes(serve):
    bench, server = serve(slots=4)
    for start in (1, 2000):
        slot, _ = server.serve(numbers(200, start))
        server.index.forget(slot)
        server.done(slot, numbers(200, start))
    held = [bench.cache.acquire(0)]
    assert server.index.stats().kept_slots == 2
    server.serve(numbers(300, 5000))
    assert server.index.stats().evicted_slots == 1
    assert server.index.stats().kept_slots == 2
    bench.cache.release(held.pop())


class Random:
    """Requests that come, fork, speak, are trimmed, cancelled and evicted, in any order."""

    def __init__(self, bench, source):
        self.bench, self.source = bench, source
        self.server = Server(bench)
        self.live = {}  # slot -> tokens and salt
        self.hits = 0

    def prompt(self):
        # Few beginnings, so that prompts have much in common.
        family = self.source.randrange(2)
        tokens = [family] * self.source.choice([BLOCK + 1, 2 * BLOCK + 9, 3 * BLOCK])
        return tokens + [self.source.randrange(2) for _ in range(self.source.randint(1, 160))]

    def admit(self):
        tokens, salt = self.prompt(), self.source.choice("ab")
        slot, hit = self.server.serve(tokens, salt)
        self.live[slot] = (tokens, salt)
        self.hits += hit > 0

    def go_on(self):
        """A turn of a chat that follows one that is done."""
        slot = self.source.choice(sorted(self.live, key=int))
        tokens, salt = self.live.pop(slot)
        self.server.done(slot, tokens)
        if len(tokens) < 900:
            tokens = [*tokens, *[self.source.randrange(3) for _ in range(9)]]
            slot, hit = self.server.serve(tokens, salt)
            self.live[slot] = (tokens, salt)
            self.hits += hit > 0

    def say(self):
        slot = self.source.choice(sorted(self.live, key=int))
        tokens, salt = self.live[slot]
        more = self.source.choice([1, 1, 40])
        if len(tokens) + more <= 1024:
            self.live[slot] = (self.server.say(slot, tokens, more, salt), salt)

    def fork(self):
        slot = self.source.choice(sorted(self.live, key=int))
        fork = self.server.cache.fork(slot)
        tokens, salt = self.live[slot]
        self.server.check(fork, tokens, salt)
        self.server.cache.trim(fork, front=self.source.randint(0, len(tokens)))
        self.server.cache.release(fork)

    def cancel(self):
        slot = self.source.choice(sorted(self.live, key=int))
        self.server.index.forget(slot)
        self.server.index.release(slot)
        del self.live[slot]

    def finish(self):
        slot = self.source.choice(sorted(self.live, key=int))
        self.server.done(slot, self.live.pop(slot)[0])

    def evict(self):
        self.server.index.give_up()

    def act(self):
        acts = [self.admit, self.admit, self.evict]
        if self.live:
            acts += [self.go_on, self.say, self.say, self.fork, self.cancel, self.finish]
        try:
            self.source.choice(acts)()
        except (OutOfMemory, OutOfSlots):
            # A step that failed may have left some tokens of a turn unsaid.
            for slot, length in self.server.cache.live_slots().items():
                if slot in self.live:
                    tokens, salt = self.live[slot]
                    self.live[slot] = (tokens + [7] * (length - len(tokens)), salt)

    def check(self):
        for slot, (tokens, salt) in self.live.items():
            self.server.check(slot, tokens, salt)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("background", [False, True])
def test_random_requests_read_what_they_would_have_computed(serve, open_bench, seed, background):
    spec = grouped_spec(max_slots=8)
    bench = open_bench(spec, shares=True, pages=100, background=background)
    requests = Random(bench, random.Random(seed))
    for _ in range(150):
        requests.act()
        requests.check()
        if not background:
            bench.check_books()
    assert requests.hits > 8
    for slot in requests.live:
        requests.server.index.release(slot)
    requests.live.clear()
    requests.server.index.close()
    bench.cache.drain()
    assert bench.check_books().pages_live == 0
