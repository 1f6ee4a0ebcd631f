# SPDX-License-Identifier: Apache-2.0
"""How many blocks are mapped, and found in the prefix cache, with vLLM's order and with ours.

vLLM's own KV cache manager hands out blocks; the worker's rows are those of the plug-in, on the
host driver. Only the model is missing: every running request makes a token a step.

    .venv-vllm/bin/python tests/vllm_plugin/order_simulation.py [--trace FILE] [--workload chats]
"""

from __future__ import annotations

import argparse
import heapq
import random
from collections import deque
from dataclasses import dataclass, field
from types import SimpleNamespace

from pyvattn import _native
from pyvattn.integrations.vllm.block_order import order_by_rows
from pyvattn.integrations.vllm.late_memory import LateRowMemory
from pyvattn.integrations.vllm.layout import Paging
from pyvattn.integrations.vllm.memory import RowMemory, Sizes
from pyvattn.traces import read_trace, synthetic_trace

WORKLOADS = ("apart", "prompts", "chats")
# vLLM's order over plain rows; the scheduler's order; late binding in the worker; and both.
WAYS = ("plain", "ordered", "late", "ordered late")
BLOCK = 16
LONGEST = 24576
# Uncached prompt tokens a step.
CHUNK = 8192
PAGE = 1 << 16


@dataclass(frozen=True)
class Result:
    """Blocks mapped and copied a request, and which part of the prompts' tokens the cache had."""

    maps: float
    copies: float
    hit_rate: float


@dataclass
class Request:
    """What vLLM's manager reads of a request, whose text is ``shared`` first and then its own."""

    request_id: str
    content: int
    num_prompt_tokens: int
    generated: int
    shared: tuple[int, int] = (0, 0)
    chat: SimpleNamespace | None = None
    num_tokens: int = 0
    num_computed_tokens: int = 0
    block_hashes: list[bytes] = field(default_factory=list)
    skip_reading_prefix_cache: bool = False
    num_in_flight_tokens: int = 0
    num_preemptions: int = 0
    shared_prefix_boundary: int = 0
    status: object = None
    row: int = -1

    def to_come(self):
        """Return how many blocks it needs at most until it ends."""
        return (self.num_prompt_tokens + self.generated - self.num_tokens) // BLOCK + 1

    def grow_to(self, tokens):
        self.num_tokens = tokens
        who, length = self.shared
        for i in range(len(self.block_hashes), tokens // BLOCK):
            owner = who if (i + 1) * BLOCK <= length else self.content
            self.block_hashes.append(b"%d/%d" % (owner, i))


class Workload:
    """Requests without end: no two alike, 50 system prompts, or chats of up to 10 turns."""

    def __init__(self, kind, lengths, think_steps, seed=1):
        self._kind, self._lengths, self._think = kind, lengths, think_steps
        self._draw = random.Random(seed)
        self._made = 0
        self._waiting = []
        self._prompts = [(-1 - i, self._draw.randint(500, 4000)) for i in range(50)]

    def next(self, step):
        self._made += 1
        prompt, generated = self._draw.choice(self._lengths)
        name, content = str(self._made), self._made
        if self._kind == "prompts":
            (shared,) = self._draw.choices(self._prompts, [1 / (i + 1) for i in range(50)])
            return Request(name, content, shared[1] + prompt, generated, shared)
        if self._kind == "chats":
            if self._waiting and self._waiting[0][0] <= step:
                chat = heapq.heappop(self._waiting)[2]
                prompt = chat.tokens + max(8, prompt // 4)
            else:
                chat = SimpleNamespace(content=content, left=self._draw.randint(1, 10), tokens=0)
            return Request(name, chat.content, prompt, generated, chat=chat)
        return Request(name, content, prompt, generated)

    def ended(self, request, step):
        chat = request.chat
        if chat is None or chat.left <= 1 or request.num_tokens > LONGEST // 2:
            return
        chat.left, chat.tokens = chat.left - 1, request.num_tokens
        when = step + self._draw.expovariate(1 / self._think)
        heapq.heappush(self._waiting, (when, self._made, chat))


class Engine:
    """vLLM's manager of so many blocks, and the rows of a worker."""

    def __init__(self, blocks, running, how):
        import torch
        from vllm.v1.core.kv_cache_manager import KVCacheManager
        from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec

        spec = FullAttentionSpec(
            block_size=BLOCK, num_kv_heads=1, head_size=1024, dtype=torch.bfloat16
        )
        config = KVCacheConfig(
            num_blocks=blocks,
            kv_cache_tensors=[],
            kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)],
        )
        self.manager = KVCacheManager(
            config,
            max_model_len=LONGEST,
            scheduler_block_size=BLOCK,
            hash_block_size=BLOCK,
            enable_caching=True,
        )
        rows = 2 * running + 1
        if "ordered" in how:
            order_by_rows(self.manager, rows - 1)
        self._driver = _native.StatisticsAdaptor(_native.make_driver("host", PAGE, 0))
        sizes = Sizes(1, 1, 1024, "bfloat16", BLOCK, blocks, rows, LONGEST // BLOCK)
        memory = LateRowMemory if "late" in how else RowMemory
        self.memory = memory(sizes, Paging(PAGE, 1), self._driver, background=False)

    def admit(self, request):
        """Return how many tokens were in the prefix cache, or None where there is no room."""
        hits, cached, _ = self.manager.get_computed_blocks(request)
        new = self.manager.allocate_slots(
            request,
            request.num_tokens - cached,
            num_new_computed_tokens=cached,
            new_computed_blocks=hits,
        )
        if new is None:
            return None
        request.num_computed_tokens = request.num_tokens
        request.row = self.memory.open(hits.get_block_ids()[0] + new.get_block_ids()[0], cached)
        return cached

    def step(self, request):
        """Make a token."""
        if request.num_tokens % BLOCK == 0:
            request.grow_to(request.num_tokens)
            new = self.manager.allocate_slots(request, 1)
            self.memory.extend(request.row, new.get_block_ids()[0])
        request.num_tokens += 1
        request.num_computed_tokens += 1

    def end(self, request):
        request.grow_to(request.num_tokens)
        self.manager.free(request)
        self.memory.close(request.row)

    def mapped(self):
        """Return how many blocks were mapped so far, and how many copied."""
        self.memory.join()
        mapped = self._driver.counts()["map"].bytes // PAGE
        return mapped, self.memory.stats().get("pages_copied", 0)

    def close(self):
        self.memory.close_all()


def simulate(workload, *, how, blocks, running, requests):
    """Serve so many requests, and count in the second half of them."""
    engine = Engine(blocks, running, how)
    now, waiting, admitted, step = [], deque(), 0, 0
    found = asked = counted = 0
    before = engine.mapped()
    while admitted < requests:
        step += 1
        for request in [r for r in now if r.num_tokens >= r.num_prompt_tokens + r.generated]:
            now.remove(request)
            engine.end(request)
            workload.ended(request, step)
        for request in list(now):
            engine.step(request)
        budget = CHUNK
        while len(now) < running and budget > 0 and admitted < requests:
            request = waiting.popleft() if waiting else workload.next(step)
            request.grow_to(request.num_prompt_tokens)
            # Room for what runs to grow: nothing is preempted here.
            room = engine.manager.block_pool.get_num_free_blocks()
            room -= sum(each.to_come() for each in (*now, request))
            if room * BLOCK < request.num_tokens or (cached := engine.admit(request)) is None:
                waiting.appendleft(request)
                break
            now.append(request)
            admitted += 1
            budget -= request.num_tokens - cached
            if admitted > requests // 2:
                asked, found = asked + request.num_tokens, found + cached
                counted += 1
        now_done = engine.mapped()
        if admitted <= requests // 2:
            before = now_done
    engine.close()
    maps, copies = (done - first for done, first in zip(now_done, before, strict=True))
    return Result(maps / counted, copies / counted, found / asked)


def compare(kind, lengths, *, running, requests, factor, ways, think_steps=100):
    """Return what each of the ways gives: the same requests, and the same memory."""
    mean = sum(prompt + generated / 2 for prompt, generated in lengths) / len(lengths)
    if kind == "prompts":
        mean += 1000  # of a system prompt, what is not shared at the time
    if kind == "chats":
        mean *= 2
    blocks = int(factor * running * mean / BLOCK)
    return tuple(
        simulate(
            Workload(kind, lengths, think_steps),
            how=how,
            blocks=blocks,
            running=running,
            requests=requests,
        )
        for how in ways
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trace", help="lengths of real requests; without it some are made up")
    parser.add_argument("--workload", choices=WORKLOADS, action="append")
    parser.add_argument("--way", choices=WAYS, action="append")
    parser.add_argument("--running", type=int, default=64)
    parser.add_argument("--requests", type=int, default=1200)
    parser.add_argument("--factor", type=float, default=1.5, help="memory over what runs takes")
    options = parser.parse_args()
    trace = read_trace(options.trace) if options.trace else synthetic_trace(seed=0)
    lengths = [(each.prompt, max(1, each.generated)) for each in trace.requests]
    print(f"{trace.label}, {options.running} running, {options.requests} requests")
    for kind in options.workload or WORKLOADS:
        results = compare(
            kind,
            lengths,
            running=options.running,
            requests=options.requests,
            factor=options.factor,
            ways=options.way or WAYS,
        )
        for how, result in zip(options.way or WAYS, results, strict=True):
            print(
                f"{kind:8} {how:13} maps a request {result.maps:6.1f}, copies "
                f"{result.copies:6.1f}, hit rate {result.hit_rate:.4f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
