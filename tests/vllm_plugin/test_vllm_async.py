# SPDX-License-Identifier: Apache-2.0
"""Real vLLM on a CPU with async scheduling: stock's tokens over rows, two steps under way."""

from __future__ import annotations

import pytest
from async_cpu import kept_async
from engines import WORKER, engine, generate

from pyvattn import DriverError

# Room for a few of the twelve requests that may run at once: eviction and preemption.
SCARCE = {"num_gpu_blocks_override": 13}


def run(model, prepare=None, **options):
    """Return what an engine makes of the prompts, and whether it had steps under way."""
    with kept_async(), engine(model, async_scheduling=True, **options) as llm:
        core = llm.llm_engine.engine_core.engine_core
        assert core.batch_queue_size == 2
        depths = _depths(core)
        if prepare is not None:
            prepare(llm)
        result = generate(llm)
        assert max(depths) == 2
        if "worker_cls" in options:
            (result.stats,) = llm.collective_rpc("pyvattn_stats")
    return result


def _depths(core):
    """Note how many steps are under way whenever blocks are handed out for another."""
    depths = []
    schedule = core.scheduler.schedule

    def noted(*arguments, **options):
        depths.append(len(core.batch_queue) + 1)
        return schedule(*arguments, **options)

    core.scheduler.schedule = noted
    return depths


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


@pytest.mark.parametrize("late", [False, True], ids=["plain", "late binding"])
def test_scarce_memory_evicts_and_preempts(tiny_llama, stock_scarce, late):
    options = {"pyvattn": {"late_binding": late}}
    ours = run(tiny_llama, worker_cls=WORKER, additional_config=options, **SCARCE)
    assert ours.tokens == stock_scarce.tokens
    assert ours.cached == stock_scarce.cached > 0
    assert ours.preemptions == stock_scarce.preemptions > 0
    assert (ours.stats.get("pages_copied", 0) > 0) == late


def test_our_scheduler_with_a_guard_and_its_order_changes_no_token(tiny_llama, stock):
    ours = run(
        tiny_llama,
        worker_cls=WORKER,
        scheduler_cls="pyvattn.vllm.Scheduler",
        additional_config={"pyvattn": {"guard_tokens": 192}},
    )
    assert ours.tokens == stock.tokens


def test_a_map_call_that_fails_once_is_made_again(tiny_llama, stock):
    def fail_one(llm):
        llm.collective_rpc("fail_nth", args=(3,))

    ours = run(tiny_llama, fail_one, worker_cls="faulty.Worker")
    assert ours.tokens == stock.tokens
    assert ours.stats["retries"] == 1


def test_map_calls_that_keep_failing_end_the_engine(tiny_llama):
    def fail(llm):
        llm.collective_rpc("fail_always")

    with pytest.raises(DriverError, match="injected"):
        run(tiny_llama, fail, worker_cls="faulty.Worker")
