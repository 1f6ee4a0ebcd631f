# SPDX-License-Identifier: Apache-2.0
"""Real vLLM on a CPU with late binding: stock's tokens, fewer map calls, some copies."""

from __future__ import annotations

import pytest
import torch
from engines import WORKER, engine, generate, run


def over_rows(**options):
    return {"worker_cls": WORKER, "additional_config": {"pyvattn": options}}


@pytest.mark.parametrize(
    ("memory", "preempts"),
    [
        ({"num_gpu_blocks_override": 40}, False),
        ({"num_gpu_blocks_override": 13}, True),
    ],
    ids=["evicts", "preempts"],
)
def test_blocks_bound_late_change_no_token_and_are_mapped_less(tiny_llama, memory, preempts):
    # Mapped in the step: a thread that maps meanwhile has a say in which rows can be taken.
    plain = run(tiny_llama, **memory, **over_rows(map_in_background=False))
    late = run(tiny_llama, **memory, **over_rows(map_in_background=False, late_binding=True))
    stock = run(tiny_llama, **memory)
    assert late.tokens == stock.tokens
    assert late.cached == stock.cached > 0
    assert late.preemptions == stock.preemptions
    assert (late.preemptions > 0) == preempts
    assert late.stats["pages_copied"] > 0
    assert late.stats["map_calls"] < plain.stats["map_calls"]
    assert late.stats["blocks_placed"] == plain.stats["blocks_placed"]


def test_blocks_bound_late_while_a_thread_maps_change_no_token(tiny_llama):
    stock = run(tiny_llama)
    late = run(tiny_llama, **over_rows(late_binding=True))
    assert late.tokens == stock.tokens
    assert late.stats["pages_copied"] > 0


def cached_contents(llm):
    """Return the ids of the blocks in the prefix cache, and what each layer has there."""
    core = llm.llm_engine.engine_core.engine_core
    blocks = core.scheduler.kv_cache_manager.block_pool.blocks
    ids = [block.block_id for block in blocks if block.block_hash is not None]
    runner = core.model_executor.driver_worker.worker.model_runner
    memory = getattr(runner, "pyvattn_memory", None)
    # From row 1 on every block of ours has its home, in order.
    places = ids if memory is None else [memory.positions + i for i in memory._binding.pages(ids)]
    return ids, [layer[places] for layer in runner.kv_caches]


def test_blocks_bound_late_hold_what_stock_has_in_them(tiny_llama):
    memory = {"num_gpu_blocks_override": 40, "max_num_batched_tokens": 192}
    kept = []
    for options in ({}, over_rows(late_binding=True)):
        with engine(tiny_llama, **memory, **options) as llm:
            generate(llm)
            kept.append(cached_contents(llm))
            if options:
                (stats,) = llm.collective_rpc("pyvattn_stats")
    (stock_ids, stock), (ids, late) = kept
    assert ids == stock_ids
    assert len(ids) > 10
    assert stats["pages_copied"] > 0
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(late, stock, strict=True))
