# SPDX-License-Identifier: Apache-2.0
"""What each of vLLM's ids holds is right through every row, whichever blocks stand behind them.

Random requests that share prefixes, grow, end, pause and evict each other, scheduled as vLLM does:
what is written and read afterwards is compared with what vLLM believes.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

import pytest
from test_late_memory import ONE_ARENA, TWO_ARENAS, holds, make_memory, write

from pyvattn.integrations.vllm.late_memory import LateRowMemory

# Requests at a time; while a row is being closed no other request gets it.
MOST = 4


@dataclass
class Running:
    """A request: its ids, how many of them hold tokens, and its row while it is scheduled."""

    ids: list[int]
    computed: int
    row: int | None = None


@dataclass
class Engine:
    """vLLM's side: who holds which ids, and what each id holds as long as it may be read."""

    memory: LateRowMemory
    draw: random.Random
    free: list[int]
    holders: dict[int, int] = field(default_factory=dict)
    content: dict[int, int] = field(default_factory=dict)
    # Older requests as (id, content), which may have been evicted since.
    chains: list[list[tuple[int, int]]] = field(default_factory=list)
    requests: list[Running] = field(default_factory=list)

    def fresh(self, most):
        """Evict some of the ids that are free the longest, and say what they will hold."""
        count = min(self.draw.randint(0, most), len(self.free))
        ids, self.free = self.free[:count], self.free[count:]
        for id_ in ids:
            self.holders[id_] = 1
            self.content[id_] = self.draw.randrange(1, 250)
        return ids

    def hits(self):
        """Hold the first ids of an older request, as far as they still hold what they did."""
        ids = []
        for id_, value in self.draw.choice(self.chains) if self.chains else []:
            if self.content[id_] != value or len(ids) == 4:
                break
            ids.append(id_)
        for id_ in ids:
            self.holders[id_] += 1
            if id_ in self.free:
                self.free.remove(id_)
        return ids

    def end(self, request):
        self.requests.remove(request)
        self.pause(request)
        for id_ in reversed(request.ids):
            self.holders[id_] -= 1
            if self.holders[id_] == 0:
                self.free.append(id_)

    def pause(self, request):
        """Leave a request out of the step, as runner V1 does: its ids stay its own."""
        if request.row is not None:
            self.memory.close(request.row)
        request.row = None

    def step(self):
        """Schedule, tell the memory in the order of vLLM's runners, run the model and look."""
        for request in list(self.requests):
            (self.end if self.draw.random() < 0.2 else lambda _: None)(request)
        for request in self.requests:
            (self.pause if self.draw.random() < 0.1 else lambda _: None)(request)
        resumed = [each for each in self.requests if each.row is None]
        grown = {}
        for request in self.requests:
            ids = self.fresh(min(2, self.memory.positions - len(request.ids)))
            grown[id(request)] = ids
            self.chains.append([(id_, self.content[id_]) for id_ in request.ids + ids])
        new = [self.begin() for _ in range(MOST - len(self.requests))]
        for request in new + resumed:
            ids = request.ids + grown.get(id(request), [])
            tokens = request.computed * self.memory.sizes.block_size
            request.row = self.memory.open(ids, max(0, tokens - self.draw.randint(0, 1)))
        for request in self.requests:
            ids = grown.get(id(request), [])
            if request not in resumed:
                self.memory.extend(request.row, ids)
            request.ids = request.ids + ids
        self.memory.join()
        self.run_model()

    def begin(self):
        """Schedule a request, which may share what another one is about to compute."""
        hits = self.hits()
        request = Running(hits + self.fresh(self.memory.positions - len(hits)), len(hits))
        self.chains = [*self.chains[-12:], [(id_, self.content[id_]) for id_ in request.ids]]
        self.requests.append(request)
        return request

    def run_model(self):
        for request in self.requests:
            for position in range(request.computed, len(request.ids)):
                write(self.memory, request.row, position, self.content[request.ids[position]])
            request.computed = len(request.ids)
        for request in self.requests:
            for position, id_ in enumerate(request.ids):
                assert holds(self.memory, request.row, position, self.content[id_])

    def check_cached(self):
        """Look at everything that was ever written, by any request."""
        for request in list(self.requests):
            self.end(request)
        for id_, value in self.content.items():
            row = self.memory.open([id_])
            self.memory.join()
            assert holds(self.memory, row, 0, value)
            self.memory.close(row)


@pytest.mark.parametrize("shape", [ONE_ARENA, TWO_ARENAS], ids=["one-arena", "two-arenas"])
@pytest.mark.parametrize("background", [True, False], ids=["background", "joined"])
def test_every_id_holds_what_was_written_to_it_last(shape, background):
    sizes, paging = shape
    sizes = replace(sizes, rows=2 * MOST + 1)
    memory, faults = make_memory(sizes, paging, background=background)
    draw = random.Random(3)
    engine = Engine(memory, draw, list(range(1, memory.sizes.blocks)))
    write(memory, 0, 0, 251)
    for _ in range(150):
        if draw.random() < 0.4:
            memory.join()
            faults.fail_nth(draw.randrange(2))
        engine.step()
        faults.disarm()
    assert memory.stats()["retries"] > 0
    assert memory.stats()["pages_copied"] > 50
    engine.check_cached()
    assert holds(memory, 0, memory.positions - 1, 251)
    memory.close_all()
