# SPDX-License-Identifier: Apache-2.0
"""Which of vLLM's block ids have memory: the others are held out of its free queue.

vLLM's pool keeps all the ids that the budget has room for. Those without a lease count as
allocated, so that its scheduler sees as many free blocks as it may use, and nothing that it
allocates can fail. What moves is decided between two steps, here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import Any

from pyvattn.errors import LedgerLost
from pyvattn.integrations.vllm.shared_memory import SharedRowMemory

__all__ = ["Supply"]

# For a neighbour to give, where nothing runs meanwhile.
_WAIT_S = 0.01


class Supply:
    """Gives a scheduler's blocks memory, and takes it away where neighbours ask.

    For one thread at a time.
    """

    def __init__(self, scheduler: Any, memory: SharedRowMemory) -> None:
        self._scheduler = scheduler
        self._memory = memory
        self._pool = scheduler.kv_cache_manager.block_pool
        self._block_tokens = memory.sizes.block_size
        self._wanted = 0
        # Without memory, the next to get some at the end.
        self._out: list[Any] = []
        self._hold_out(self._pool.free_block_queue.popleft_n(self._pool.get_num_free_blocks()))
        self._out.reverse()

    def balance(self) -> bool:
        """Give, then take, before vLLM schedules a step; say whether requests were preempted."""
        self.give()
        preempted = self._preempt()
        if preempted:
            self.give()
        else:
            self._take()
        return preempted

    def give(self) -> None:
        """Give back what neighbours ask for: free blocks, then those of the prefix cache.

        The longest unused goes first.
        """
        self._memory.settle()
        over = min(self._memory.over_blocks(), self._pool.get_num_free_blocks())
        if over:
            self._give_away(over)
            self._memory.settle()

    def wait_asked(self, milliseconds: int) -> bool:
        """Wait until neighbours ask for something, or so long; return whether they do."""
        asked: bool = self._memory.lease.wait_asked(milliseconds)
        return asked

    def _give_away(self, count: int) -> None:
        free = self._pool.free_block_queue.get_all_free_blocks()
        fresh = [block for block in free if block.block_hash is None][:count]
        cached = (block for block in free if block.block_hash is not None)
        given = [*fresh, *islice(cached, count - len(fresh))]
        for block in given:
            self._pool.free_block_queue.remove(block)
            self._pool._maybe_evict_cached_block(block)
        self._hold_out(given)
        self._memory.unback([block.block_id for block in given])

    def _preempt(self) -> bool:
        """End running requests, the youngest first, for a member below its guarantee."""
        scheduler, any_ended = self._scheduler, False
        while scheduler.running and self._owed_blocks() > 0:
            request = scheduler.running.pop()
            scheduler._preempt_request(request, time.monotonic())
            # It must not look as if it had been scheduled in the last step.
            scheduler.prev_step_scheduled_req_ids.discard(request.request_id)
            any_ended = True
        return any_ended

    def _owed_blocks(self) -> int:
        """Return how many blocks in use are owed, beyond those that come free by themselves."""
        owed = -(-self._memory.lease.owed // self._memory.block_bytes)
        if not owed:
            return 0
        # Of requests that ended, which kernels may still write.
        deferred = sum(len(blocks) for _, blocks in getattr(self._scheduler, "deferred_frees", ()))
        free = self._pool.get_num_free_blocks()
        coming: int = free + deferred + self._memory.unused_blocks()
        return owed - coming

    def _take(self) -> None:
        """Take memory for what the step may allocate, and ask for what waits beyond it."""
        lease, size = self._memory.lease, self._memory.block_bytes
        now, later = self._needs()
        lacking = now - self._pool.get_num_free_blocks()
        if lacking > 0:
            self._back(lacking, lease.headroom)
        else:
            # A prefix is not evicted while memory is free that nobody asks for.
            self._back(self._cached_among_first(now), lease.limit - lease.held)
        wanted = max(0, now + later - self._pool.get_num_free_blocks()) * size
        if not wanted and not self._wanted:
            return
        self._wanted = wanted
        with suppress(LedgerLost):
            lease.want(wanted)
            if lacking > 0 and not self._scheduler.running:
                lease.wait_for(min(now * size, wanted), _WAIT_S)
                self._back(now - self._pool.get_num_free_blocks(), lease.headroom)

    def _back(self, count: int, room: int) -> None:
        """Put up to ``count`` more blocks in front of the free queue, where there is memory."""
        if count <= 0 or not self._out:
            return
        most = self._memory.pool.stats().blocks_free + max(0, room) // self._memory.block_bytes
        count = min(count, len(self._out), most)
        blocks = self._out[len(self._out) - count :]
        if not count or not self._memory.back([block.block_id for block in blocks]):
            return
        del self._out[len(self._out) - count :]
        for block in blocks:
            block.ref_cnt = 0
        self._put_in_front(blocks[::-1])
        self._pool.num_gpu_blocks += count

    def _put_in_front(self, blocks: list[Any]) -> None:
        queue = self._pool.free_block_queue
        if hasattr(queue, "prepend_n"):
            queue.prepend_n(blocks)
        else:
            queue.append_n(blocks + queue.popleft_n(queue.num_free_blocks))

    def _hold_out(self, blocks: list[Any]) -> None:
        for block in blocks:
            block.ref_cnt = 1
        self._out += blocks
        # From this vLLM computes usage, and whether all is free.
        self._pool.num_gpu_blocks -= len(blocks)

    def _cached_among_first(self, count: int) -> int:
        return sum(block.block_hash is not None for block in islice(self._queued(), count))

    def _queued(self) -> Iterator[Any]:
        queue = self._pool.free_block_queue
        block = queue.fake_free_list_head.next_free_block
        while block is not None and block is not queue.fake_free_list_tail:
            yield block
            block = block.next_free_block

    def _needs(self) -> tuple[int, int]:
        """Return how many blocks the next step may allocate, and how many those that wait do."""
        scheduler = self._scheduler
        now = sum(map(self._blocks_to_run, scheduler.running))
        # One more for each, before it is short.
        later = len(scheduler.running) if now else 0
        tokens = scheduler.max_num_scheduled_tokens
        places = scheduler.max_num_running_reqs - len(scheduler.running)
        for request in islice(scheduler.waiting, places):
            blocks = self._blocks_to_run(request)
            if tokens > 0:
                now += blocks
            else:
                later += blocks
            tokens -= request.num_tokens
        return now, later

    def _blocks_to_run(self, request: Any) -> int:
        """Return how many blocks more a request has once it has run a step, at most."""
        ahead = request.num_output_placeholders + 1 + self._scheduler.num_lookahead_tokens
        tokens: int = min(request.num_tokens + ahead, self._scheduler.max_model_len)
        computed: int = request.num_computed_tokens
        return -(-tokens // self._block_tokens) - -(-computed // self._block_tokens)
