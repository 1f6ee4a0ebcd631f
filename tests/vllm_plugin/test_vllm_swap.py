# SPDX-License-Identifier: Apache-2.0
"""Real vLLM on a CPU whose preempted requests go to host memory: stock's tokens, not recomputed."""

from __future__ import annotations

import pytest
from async_cpu import kept_async
from engines import WORKER, engine, generate, prompts, run

from pyvattn import UnsupportedError
from pyvattn.layers import LayerTensors

# Room for a few of the twelve requests that may run at once. Nothing is found in a prefix cache,
# so that what comes back without being computed comes from the host.
SCARCE = {"num_gpu_blocks_override": 13, "enable_prefix_caching": False}
SWAP = {
    "worker_cls": WORKER,
    "kv_transfer_config": {"kv_connector": "PyvattnSwapConnector", "kv_role": "kv_both"},
}
NEW_TOKENS = 96


@pytest.fixture(scope="module")
def stock(tiny_llama):
    return run(tiny_llama, NEW_TOKENS, **SCARCE)


def swapped(model, prepare=None, **options):
    """Return what an engine that swaps says, and how many tokens its steps ran."""
    ran = []
    with engine(model, **SWAP, **{**SCARCE, **options}) as llm:
        core = llm.llm_engine.engine_core.engine_core
        schedule = core.scheduler.schedule

        def noted(*arguments, **options):
            step = schedule(*arguments, **options)
            ran.append(step.total_num_scheduled_tokens)
            return step

        core.scheduler.schedule = noted
        if prepare is not None:
            prepare(llm)
        result = generate(llm, NEW_TOKENS)
        (result.stats,) = llm.collective_rpc("pyvattn_stats")
        rows = core.model_executor.driver_worker.worker.model_runner.pyvattn_host_rows
    # Shut down: nothing of the host is taken.
    assert rows.stats()["swap_host_bytes"] == rows.stats()["swapped_now"] == 0
    return result, sum(ran)


def test_a_preempted_request_comes_back_without_being_computed_anew(tiny_llama, stock):
    ours, ran = swapped(tiny_llama)
    assert ours.tokens == stock.tokens
    assert ours.preemptions > 0
    assert ours.stats["swapped_out"] == ours.stats["swapped_in"] == ours.preemptions
    assert ours.stats["swap_refused"] == 0
    # Each token of a prompt once, and each that was generated but for the last.
    needed = [len(each) + NEW_TOKENS - 1 for each in prompts()]
    assert ran == 2 * sum(needed)


def test_what_the_prefix_cache_still_has_is_not_copied_back(tiny_llama):
    caching = {"enable_prefix_caching": True}
    expected = run(tiny_llama, NEW_TOKENS, **{**SCARCE, **caching})
    ours, _ = swapped(tiny_llama, **caching)
    assert ours.tokens == expected.tokens
    assert 0 < ours.stats["swap_bytes_in"] < ours.stats["swap_bytes_out"]


@pytest.mark.parametrize("late", [False, True], ids=["plain", "late binding"])
def test_with_two_steps_under_way(tiny_llama, stock, late):
    with kept_async():
        options = {"pyvattn": {"late_binding": late}}
        ours, _ = swapped(tiny_llama, async_scheduling=True, additional_config=options)
    assert ours.tokens == stock.tokens
    assert ours.preemptions > 0
    assert ours.stats["swapped_in"] > 0


def test_copies_to_the_host_that_fail_and_host_memory_that_ends(tiny_llama, stock, monkeypatch):
    fails = [True, False]
    to_host = LayerTensors.to_host

    def failing(*arguments):
        fails.append(fails.pop(0))
        if fails[-1]:
            raise RuntimeError("injected")
        return to_host(*arguments)

    monkeypatch.setattr(LayerTensors, "to_host", failing)
    ours, _ = swapped(tiny_llama)
    assert ours.tokens == stock.tokens
    counted = ours.stats
    assert 0 < counted["swapped_out"] == counted["swapped_in"] < ours.preemptions
    assert counted["swapped_out"] + counted["swap_refused"] == ours.preemptions


def test_a_copy_back_that_fails_is_computed_anew(tiny_llama, stock, monkeypatch):
    fails = [True]
    fill = LayerTensors.fill

    def failing(*arguments):
        if fails:
            fails.pop()
            raise RuntimeError("injected")
        return fill(*arguments)

    monkeypatch.setattr(LayerTensors, "fill", failing)
    ours, _ = swapped(tiny_llama)
    assert ours.tokens == stock.tokens
    assert ours.stats["swapped_in"] == ours.stats["swapped_out"] - 1 > 0


def test_vllms_own_worker_has_no_rows_to_copy(tiny_llama):
    from vllm.distributed.kv_transfer import ensure_kv_transfer_shutdown

    transfer = SWAP["kv_transfer_config"]
    try:
        with (
            pytest.raises(UnsupportedError, match=r"add --worker-cls pyvattn\.vllm\.Worker"),
            engine(tiny_llama, kv_transfer_config=transfer),
        ):
            pass
    finally:
        # An engine that does not start leaves its connector to the next.
        ensure_kv_transfer_shutdown()
