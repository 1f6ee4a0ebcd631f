# SPDX-License-Identifier: Apache-2.0
"""A member that works until it is killed: `python engine.py NAME GUARANTEE SEED`.

It fills every page that it maps with a number of its own and looks at it again, so that a
page which two processes had would show.
"""

from __future__ import annotations

import random
import sys

from pyvattn import CacheSpec, KVCache, OutOfMemory, SharedMemory

PAGE = 64 << 10
TOKENS = 256


def main() -> None:
    name, guarantee, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    draw = random.Random(seed)
    spec = CacheSpec(1, 1, 64, "float32", max_slots=8, max_tokens=64 * TOKENS)
    memory = SharedMemory("cpu", guarantee=guarantee, name=name)
    cache = KVCache(
        spec, device="cpu", memory=memory, page_size=PAGE, layout="layer", accounting=True
    )
    live = {}
    print("ready", flush=True)
    while True:
        if live and draw.random() < 0.45:
            slot = draw.choice(list(live))
            del live[slot]
            cache.release(slot)
        elif len(live) < 8:
            tokens = draw.randint(1, 24) * TOKENS
            try:
                live[cache.admit(tokens)] = tokens
            except OutOfMemory:
                if live:
                    slot = next(iter(live))
                    del live[slot]
                    cache.release(slot)


if __name__ == "__main__":
    main()
