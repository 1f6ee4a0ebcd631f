# SPDX-License-Identifier: Apache-2.0
"""What a cache says of itself is right at every moment, also while its mapper works."""

from __future__ import annotations

import random
import threading

import pytest

from pyvattn import CacheSpec, KVCache, OutOfMemory, OutOfSlots

SPEC = CacheSpec(8, 4, 64, "float32", max_slots=24, max_tokens=2048, guard_tokens=0)


class Watcher(threading.Thread):
    """Reads the books all the time, and keeps those that do not add up."""

    def __init__(self, cache):
        super().__init__()
        self.cache = cache
        self.wrong = []
        self.reads = 0
        self.over = threading.Event()

    def run(self):
        while not self.over.is_set():
            s = self.cache.stats()
            self.reads += 1
            places = s.pages_free + s.pages_mapped + s.pages_quarantined
            if (
                places != s.pages_allocated
                or s.pages_live + s.pages_retained != s.pages_mapped
                or s.pages_ahead > s.pages_retained
                or s.pages_allocated * s.page_size > s.memory_limit
            ):
                self.wrong.append(s)


@pytest.fixture(params=[0, 256], ids=lambda tokens: f"read ahead {tokens}")
def cache(request):
    with KVCache(
        SPEC,
        device="cpu",
        memory="48MiB",
        layout="layer",
        page_size="64K",
        read_ahead=request.param,
    ) as cache:
        yield cache


def test_pages_add_up_and_admission_is_what_then_happens(cache):
    watcher = Watcher(cache)
    watcher.start()
    try:
        wrong = serve(cache, random.Random(5), steps=400)
    finally:
        watcher.over.set()
        watcher.join()
    assert watcher.reads > 0
    assert not watcher.wrong
    assert not wrong


def serve(cache, source, steps):
    """Serve requests; return the admissions that went otherwise than can_admit() said."""
    live: dict = {}
    wrong = []
    for _ in range(steps):
        if source.random() < 0.4:
            tokens = source.randint(1, 900)
            said = cache.can_admit(tokens)
            done = admit(cache, live, tokens)
            if said != done:
                wrong.append((tokens, said, done))
        for slot in list(live):
            if source.random() < 0.05:
                cache.release(slot)
                del live[slot]
            else:
                live[slot] = min(live[slot] + 1, SPEC.max_tokens)
        try:
            cache.step(live)
        except OutOfMemory:
            cache.release(live.popitem()[0])
    return wrong


def admit(cache, live, tokens):
    try:
        slot = cache.acquire(tokens)
    except OutOfSlots:
        return False
    try:
        cache.step({slot: tokens})
    except OutOfMemory:
        cache.release(slot)
        return False
    live[slot] = tokens
    return True
