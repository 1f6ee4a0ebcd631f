# SPDX-License-Identifier: Apache-2.0
"""Real vLLM on a CPU, of a model with sliding windows: a row for each request and group."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
from async_cpu import kept_async
from engines import WORKER, engine, generate
from tiny_gemma import BLOCK_SIZE, write_gemma

from pyvattn.integrations.vllm.memory import NULL_BLOCK, RowMemory
from pyvattn.integrations.vllm.requests import RequestRows

pytestmark = pytest.mark.skipif(
    find_spec("vllm") is None, reason="vLLM is not installed here: make test-vllm"
)
GROUPS = 3
NEW_TOKENS = 40
OPTIONS = {
    "block_size": BLOCK_SIZE,
    "skip_tokenizer_init": True,
    "max_model_len": 576,
    "max_num_batched_tokens": 128,
}
# Room for a few of the twelve requests that may run at once: eviction and preemption.
SCARCE = {"num_gpu_blocks_override": 60}


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    """The folder of a random Gemma 3."""
    return write_gemma(tmp_path_factory.mktemp("tiny-gemma"))


def run(model, kinds=("SlidingWindowSpec", "SlidingWindowSpec", "FullAttentionSpec"), **options):
    """Return what an engine makes of the prompts, whose layers are in groups of these kinds."""
    with kept_async(), engine(model, **OPTIONS, **options) as llm:
        manager = llm.llm_engine.engine_core.engine_core.scheduler.kv_cache_manager
        groups = manager.kv_cache_config.kv_cache_groups
        assert tuple(type(each.kv_cache_spec).__name__ for each in groups) == kinds
        skipped = _count_skipped(manager)
        result = generate(llm, NEW_TOKENS)
        # Blocks behind windows were freed while their requests ran.
        assert skipped
        if "worker_cls" in options:
            (result.stats,) = llm.collective_rpc("pyvattn_stats")
    return result


def _count_skipped(manager):
    freed = []
    pool = manager.block_pool
    free = pool.free_blocks

    def noted(blocks, *arguments, **options):
        blocks = list(blocks)
        freed.extend(blocks)
        return free(blocks, *arguments, **options)

    for each in manager.coordinator.single_type_managers:
        remove = each.remove_skipped_blocks

        def removed(*arguments, remove=remove, **options):
            pool.free_blocks = noted
            try:
                return remove(*arguments, **options)
            finally:
                pool.free_blocks = free

        each.remove_skipped_blocks = removed
    return freed


@pytest.fixture(scope="module")
def stock(gemma):
    return run(gemma)


def test_ample_memory_and_shared_prefixes(gemma, stock):
    ours = run(gemma, worker_cls=WORKER)
    assert len({tuple(tokens) for tokens in stock.tokens}) > 1
    assert ours.tokens == stock.tokens
    assert ours.cached == stock.cached > 0
    assert ours.stats["requests"] >= GROUPS * len(stock.tokens)


def test_no_row_maps_the_null_block_in_front_of_a_window(gemma, monkeypatch):
    named, mapped = [], []
    of_request, of_row = RequestRows.open, RowMemory.open

    def named_by_vllm(rows, place, blocks, computed=None):
        named.append(list(blocks))
        return of_request(rows, place, blocks, computed)

    def opened(memory, blocks, computed=None):
        mapped.append(list(blocks))
        return of_row(memory, blocks, computed)

    monkeypatch.setattr(RequestRows, "open", named_by_vllm)
    monkeypatch.setattr(RowMemory, "open", opened)
    run(gemma, worker_cls=WORKER)
    assert any(blocks[:2] == [NULL_BLOCK] * 2 and len(blocks) > 2 for blocks in named)
    assert not any(NULL_BLOCK in blocks for blocks in mapped)


def test_scarce_memory_evicts_and_preempts(gemma):
    options = {"async_scheduling": True, **SCARCE}
    stock = run(gemma, **options)
    ours = run(gemma, worker_cls=WORKER, **options)
    late = run(
        gemma,
        worker_cls=WORKER,
        additional_config={"pyvattn": {"late_binding": True}},
        **options,
    )
    assert ours.tokens == late.tokens == stock.tokens
    assert ours.cached == late.cached == stock.cached > 0
    assert ours.preemptions == late.preemptions == stock.preemptions > 0
    assert late.stats["pages_copied"] > 0


def test_windows_without_a_block_table(gemma, stock):
    ours = run(gemma, worker_cls=WORKER, attention_backend="CUSTOM")
    assert ours.tokens == stock.tokens
    assert ours.cached == stock.cached > 0


def test_windows_without_a_block_table_where_memory_is_scarce(gemma):
    options = {"async_scheduling": True, **SCARCE}
    stock = run(gemma, **options)
    ours = run(
        gemma,
        worker_cls=WORKER,
        attention_backend="CUSTOM",
        additional_config={"pyvattn": {"late_binding": True}},
        **options,
    )
    assert ours.tokens == stock.tokens
    assert ours.cached == stock.cached > 0
    assert ours.preemptions == stock.preemptions > 0


def test_a_guard_in_every_group_changes_no_token(gemma, stock):
    ours = run(
        gemma,
        worker_cls=WORKER,
        scheduler_cls="pyvattn.vllm.SyncScheduler",
        additional_config={"pyvattn": {"guard_tokens": 192}},
    )
    assert ours.tokens == stock.tokens


def test_a_model_of_sliding_windows_alone(tmp_path):
    model = write_gemma(tmp_path, ["sliding_attention"] * 2)
    stock = run(model, ("SlidingWindowSpec",))
    ours = run(model, ("SlidingWindowSpec",), worker_cls=WORKER)
    assert ours.tokens == stock.tokens
    assert ours.cached == stock.cached > 0
