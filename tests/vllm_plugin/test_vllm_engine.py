# SPDX-License-Identifier: Apache-2.0
"""Real vLLM on a CPU: stock, and over rows, token for token."""

from __future__ import annotations

import pytest
from engines import WORKER, engine, generate, run

from pyvattn import DriverError, RowMap, UnsupportedError

SCHEDULER = "pyvattn.vllm.Scheduler"
# Room for a few of the twelve requests that may run at once: eviction and preemption.
SCARCE = {"num_gpu_blocks_override": 13}


@pytest.fixture(scope="module")
def stock(tiny_llama):
    return run(tiny_llama)


@pytest.fixture(scope="module")
def stock_scarce(tiny_llama):
    return run(tiny_llama, **SCARCE)


def test_ample_memory_and_shared_prefixes(tiny_llama, stock):
    ours = run(tiny_llama, worker_cls=WORKER)
    assert ours.tokens == stock.tokens
    assert ours.cached == stock.cached > 0
    # The second round's prefixes were mapped already, where their rows still were.
    assert ours.stats["map_calls"] < ours.stats["blocks_placed"]
    assert ours.stats["driver_failures"] == 0


def test_sync_scheduling_and_mapping_in_the_step(tiny_llama, stock):
    ours = run(
        tiny_llama,
        worker_cls=WORKER,
        async_scheduling=False,
        additional_config={"pyvattn": {"map_in_background": False}},
    )
    assert ours.tokens == stock.tokens


def test_scarce_memory_evicts_and_preempts(tiny_llama, stock_scarce):
    ours = run(tiny_llama, worker_cls=WORKER, **SCARCE)
    assert ours.tokens == stock_scarce.tokens
    assert ours.preemptions == stock_scarce.preemptions > 0


def test_blocks_for_the_guard_change_no_token(tiny_llama, stock):
    ours = run(
        tiny_llama,
        worker_cls=WORKER,
        scheduler_cls=SCHEDULER,
        additional_config={"pyvattn": {"guard_tokens": 192, "order_blocks": False}},
    )
    assert ours.tokens == stock.tokens


def test_blocks_in_the_order_of_rows_change_no_token_and_are_mapped_less(tiny_llama, stock_scarce):
    ours = run(tiny_llama, worker_cls=WORKER, scheduler_cls=SCHEDULER, **SCARCE)
    vllms_order = run(tiny_llama, worker_cls=WORKER, **SCARCE)
    assert ours.tokens == stock_scarce.tokens
    assert ours.cached >= 0.99 * stock_scarce.cached
    assert ours.stats["map_calls"] < vllms_order.stats["map_calls"]


def test_map_calls_that_fail(tiny_llama, stock):
    with engine(tiny_llama, worker_cls="faulty.Worker") as llm:
        llm.collective_rpc("fail_nth", args=(3,))
        once = generate(llm)
        (stats,) = llm.collective_rpc("pyvattn_stats")
        assert once.tokens == stock.tokens
        assert stats["retries"] == 1
        llm.reset_prefix_cache()
        llm.collective_rpc("fail_always")
        with pytest.raises(DriverError, match="injected"):
            generate(llm)


def test_what_is_not_supported_is_refused_before_memory_is_taken(tiny_llama):
    with (
        pytest.raises(UnsupportedError, match="--kv-cache-dtype fp8_e5m2: use one of auto"),
        engine(tiny_llama, worker_cls=WORKER, kv_cache_dtype="fp8_e5m2"),
    ):
        pass


def test_a_step_is_prepared_while_its_blocks_are_mapped(tiny_llama, stock, monkeypatch):
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    order = []
    for owner, name, event in (
        (GPUModelRunner, "_update_states", "blocks are known"),
        (RowMap, "flush_async", "maps begin"),
        (GPUModelRunner, "_build_attention_metadata", "metadata"),
        (RowMap, "join", "wait"),
        (GPUModelRunner, "_model_forward", "model"),
    ):
        monkeypatch.setattr(owner, name, noted(getattr(owner, name), event, order))
    ours = run(tiny_llama, worker_cls=WORKER)
    assert ours.tokens == stock.tokens
    order = order[order.index("blocks are known") :]
    staged = 0
    for index, event in enumerate(order):
        if event == "wait":
            assert (order[index - 1], order[index + 1]) == ("metadata", "model")
            staged += 1
        if event == "maps begin":
            step = order[index:]
            assert step.index("wait") < step.index("model")
    assert 0 < staged < order.count("model")


def noted(function, event, order):
    """Return a function that adds the event to a list before it is called."""

    def called(*arguments, **options):
        order.append(event)
        return function(*arguments, **options)

    return called
