# SPDX-License-Identifier: Apache-2.0
"""vLLM's KV cache manager, handing out blocks in the order of rows that have them mapped.

vLLM's pool stays what it is: before it takes blocks from the front of its free queue, those that
suit the request are moved there, with the queue's own methods. They are among the blocks that it
would take soon, so that what stays in the prefix cache hardly changes: see :class:`RowOrder`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from pyvattn.integrations.vllm.row_order import RowOrder

__all__ = ["order_by_rows"]

# Of the free blocks, what may be evicted before its time.
_SPARE = 0.01

_log = logging.getLogger("vllm.pyvattn")


class _OrderedManager:
    """Mixed into ``vllm.v1.core.kv_cache_manager.KVCacheManager``."""

    pyvattn_order: RowOrder
    pyvattn_block_size: int

    def allocate_slots(
        self, request: Any, num_new_tokens: int, *arguments: Any, **options: Any
    ) -> Any:
        """Move what suits the request's row to the front of the free queue, and allocate."""
        order, name = self.pyvattn_order, request.request_id
        hits = _hits(arguments, options)
        begins = order.length(name) == 0
        self._put_in_front(request, num_new_tokens, hits, options)
        new = super().allocate_slots(  # type: ignore[misc]
            request, num_new_tokens, *arguments, **options
        )
        if new is None:
            return None
        (blocks,) = new.get_block_ids()
        if not begins:
            order.extend(name, blocks)
        elif hits or blocks:
            order.begin(name, hits + blocks)
        return new

    def free(self, request: Any) -> None:
        """Free the request's blocks, whose row is closed from here on."""
        self._end(request)
        super().free(request)  # type: ignore[misc]

    def pop_blocks_for_free(self, request: Any) -> Any:
        """Take the request's blocks, to be freed once the step that writes them is done."""
        self._end(request)
        return super().pop_blocks_for_free(request)  # type: ignore[misc]

    def _put_in_front(
        self, request: Any, num_new_tokens: int, hits: list[int], options: dict[str, Any]
    ) -> None:
        manager: Any = self
        size, order = self.pyvattn_block_size, self.pyvattn_order
        computed = request.num_computed_tokens + options.get("num_new_computed_tokens", 0)
        tokens = computed + num_new_tokens + options.get("num_lookahead_tokens", 0)
        have = order.length(request.request_id) or len(hits)
        count = -(-min(tokens, manager.max_model_len) // size) - have
        if count <= 0:
            return
        whole = max(-(-request.num_tokens // size), have + count)
        pool = manager.block_pool
        held = set(hits)
        free = (block for block in _free(pool) if block not in held)
        oldest = list(islice(free, whole - have))
        if len(oldest) < count:
            return
        next_oldest = list(islice(free, int(pool.get_num_free_blocks() * _SPARE)))
        wanted = order.choose(request.request_id, hits, count, whole, oldest, next_oldest)
        chosen = {block for block in wanted if block is not None}
        others = (block for block in oldest if block not in chosen)
        rest = iter(sorted(islice(others, count - len(chosen))))
        in_order = [pool.blocks[next(rest) if each is None else each] for each in wanted]
        for block in in_order:
            pool.free_block_queue.remove(block)
        pool.free_block_queue.prepend_n(in_order)

    def _end(self, request: Any) -> None:
        manager: Any = self
        name = request.request_id
        if self.pyvattn_order.length(name):
            (blocks,) = manager.get_blocks(name).blocks
            self.pyvattn_order.end(name, [block.block_hash is not None for block in blocks])


def order_by_rows(manager: Any, rows: int) -> None:
    """Make a manager that vLLM built hand out blocks in the order of ``rows`` rows.

    It stays as it is where it has several groups of layers, whose blocks share one free queue, and
    where the free queue of this release has no ``prepend_n``.
    """
    pool = manager.block_pool
    if not hasattr(pool.free_block_queue, "prepend_n"):
        _log.info("pyvattn: this release of vLLM hands out blocks in its own order only")
        return
    groups = manager.kv_cache_config.kv_cache_groups
    if len(groups) != 1:
        return
    built = type(manager)
    manager.__class__ = type(f"Ordered{built.__name__}", (_OrderedManager, built), {})
    manager.pyvattn_order = RowOrder(rows, lambda block: pool.blocks[block].ref_cnt == 0)
    manager.pyvattn_block_size = groups[0].kv_cache_spec.block_size


def _hits(arguments: Sequence[Any], options: dict[str, Any]) -> list[int]:
    """Return the blocks found in the prefix cache, of a call of ``allocate_slots``."""
    hits = options.get("new_computed_blocks", arguments[1] if len(arguments) > 1 else None)
    if hits is None:
        return []
    (blocks,) = hits.get_block_ids()
    return list(blocks)


def _free(pool: Any) -> Iterator[int]:
    """Walk the free queue, the block that would be evicted first in front."""
    block = pool.free_block_queue.fake_free_list_head.next_free_block
    while block is not None and block is not pool.free_block_queue.fake_free_list_tail:
        yield block.block_id
        block = block.next_free_block
