# SPDX-License-Identifier: Apache-2.0
"""A member that works until it is killed: `python engine.py NAME GUARANTEE SEED`.

It fills every request with a number of its own and looks at all of it before it lets go: what
others got of its memory, or the death of one that gave it, would show. Then it ends, with 1.
"""

from __future__ import annotations

import random
import sys

import numpy

from pyvattn import CacheSpec, KVCache, OutOfMemory, SharedMemory

PAGE = 64 << 10
TOKENS = 256


class Engine:
    def __init__(self, cache, seed):
        self.cache = cache
        self.draw = random.Random(seed)
        self.k, self.v = cache.layer(0, numpy.from_dlpack)
        self.number = seed << 16
        # What each live slot holds: its tokens, and the number that they were filled with.
        self.live = {}

    def step(self):
        if self.live and self.draw.random() < 0.45:
            self.release(self.draw.choice(list(self.live)))
        elif len(self.live) < self.cache.spec.max_slots:
            try:
                self.admit(self.draw.randint(1, 24) * TOKENS)
            except OutOfMemory:
                if self.live:
                    self.release(next(iter(self.live)))

    def admit(self, tokens):
        slot = self.cache.admit(tokens)
        # Small enough that no two are alike in float32.
        self.number = (self.number + 1) % (1 << 24)
        for tensor in (self.k, self.v):
            assert not tensor[slot.index, :tokens].any(), "it got somebody's tokens"
            tensor[slot.index, :tokens] = self.number
        self.live[slot] = tokens, self.number

    def release(self, slot):
        tokens, number = self.live.pop(slot)
        for tensor in (self.k, self.v):
            assert (tensor[slot.index, :tokens] == number).all(), "its tokens are not its own"
        self.cache.release(slot)


def main() -> None:
    name, guarantee, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    spec = CacheSpec(1, 1, 64, "float32", max_slots=8, max_tokens=64 * TOKENS)
    memory = SharedMemory("cpu", guarantee=guarantee, name=name)
    cache = KVCache(spec, device="cpu", memory=memory, page_size=PAGE, layout="layer")
    engine = Engine(cache, seed)
    print("ready", flush=True)
    while True:
        engine.step()


if __name__ == "__main__":
    main()
