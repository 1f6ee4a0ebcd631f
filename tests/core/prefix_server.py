# SPDX-License-Identifier: Apache-2.0
"""Requests through an index of prefixes, each held against what a model without one computes."""

from __future__ import annotations

from contextlib import suppress

import numpy as np

from pyvattn import OutOfMemory, OutOfSlots
from pyvattn.prefix import PrefixIndex

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


def _places(first, end, ring):
    """Where tokens of a row lie, as numpy takes it."""
    return np.arange(first, end) % ring if ring else slice(first, end)


class Server:
    """Requests through an index, held against what an uncached model would have computed."""

    def __init__(self, bench):
        self.cache, self.index = bench.cache, PrefixIndex(bench.cache)
        spec = bench.cache.spec
        self.windows = [spec.window_of(layer) for layer in range(spec.layers)]
        self.layers = [bench.arrays(layer) for layer in range(spec.layers)]
        groups = [spec.group_of(layer)[0] for layer in range(spec.layers)]
        self.rings = [self.cache.geometries[group].ring_tokens for group in groups]
        with_state = sorted({layer for group in spec.states for layer in group.layers})
        states = [self.cache.state(layer, np.from_dlpack) for layer in with_state]
        self.states = [tensor for state in states for tensor in state.values()]

    def check(self, slot, tokens, salt="a"):
        """The states, and what the next token of every layer sees, are what they should be."""
        made = patterns(salt, tokens)
        for tensor in self.states:
            assert (tensor[slot.index] == (made[-1] if made else 0)).all()
        for window, ring, tensors in zip(self.windows, self.rings, self.layers, strict=True):
            first = max(0, len(tokens) - window + 1) if window else 0
            for tensor in tensors:
                places = _places(first, len(tokens), ring)
                assert tensor[slot, places, 0, 0].tolist() == made[first:]

    def compute(self, slot, begin, tokens, salt="a"):
        """Run the tokens from ``begin`` on: K and V of each, and one state after the last."""
        made = np.array(patterns(salt, tokens)[begin:], np.float32)
        for ring, tensors in zip(self.rings, self.layers, strict=True):
            for tensor in tensors:
                tensor[slot, _places(begin, len(tokens), ring)] = made.reshape(-1, 1, 1)
        for tensor in self.states:
            tensor[slot.index] = made[-1]

    def serve(self, tokens, salt="a"):
        slot, done = hit = self.index.admit(tokens, salt=salt)
        self.check(slot, tokens[:done], salt)
        while done < len(tokens):
            end = self.index.next_snapshot(slot, done) or len(tokens)
            end = min(end, done + (self.cache.chunk_tokens or end))
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


class Random:
    """Requests that come, fork, speak, are trimmed, cancelled and evicted, in any order."""

    def __init__(self, server, source):
        self.server, self.source = server, source
        self.live = {}  # slot -> tokens and salt
        self.hits = 0

    def prompt(self):
        # Few beginnings, so that prompts have much in common.
        family, block = self.source.randrange(2), self.server.index.block_tokens
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
