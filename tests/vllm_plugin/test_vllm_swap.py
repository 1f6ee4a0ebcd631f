# SPDX-License-Identifier: Apache-2.0
"""Real vLLM on a CPU whose preempted requests go to host memory: stock's tokens, not recomputed."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
from async_cpu import kept_async
from engines import WORKER, engine, generate, prompts, run

from pyvattn import UnsupportedError
from pyvattn.integrations.vllm.host_rows import HostRows
from pyvattn.integrations.vllm.swap_rates import StepClock

# Room for a few of the twelve requests that may run at once. Nothing is found in a prefix cache,
# so that what comes back without being computed comes from the host.
SCARCE = {"num_gpu_blocks_override": 13, "enable_prefix_caching": False}
SWAP = {
    "worker_cls": WORKER,
    "kv_transfer_config": {"kv_connector": "PyvattnSwapConnector", "kv_role": "kv_both"},
    "additional_config": {"pyvattn": {"swap": "always"}},
}
NEW_TOKENS = 96


@pytest.fixture(scope="module")
def stock(tiny_llama):
    return run(tiny_llama, NEW_TOKENS, **SCARCE)


def swapped(model, prepare=None, **options):
    """Return what an engine that swaps says, and how many tokens its steps ran."""
    ran = []
    with engine(model, **{**SWAP, **SCARCE, **options}) as llm:
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
        options = {"pyvattn": {"late_binding": late, "swap": "always"}}
        ours, _ = swapped(tiny_llama, async_scheduling=True, additional_config=options)
    assert ours.tokens == stock.tokens
    assert ours.preemptions > 0
    assert ours.stats["swapped_in"] > 0


def failing_at(monkeypatch, owner, name, fails):
    """Have a call raise where the next of ``fails``, over and over, says so."""
    call = getattr(owner, name)
    left = []

    def failing(*arguments):
        left[:] = left or fails
        if left.pop(0):
            raise RuntimeError("injected")
        return call(*arguments)

    monkeypatch.setattr(owner, name, failing)


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_copies_to_the_host_that_fail(tiny_llama, stock, monkeypatch, is_async):
    failing_at(monkeypatch, HostRows, "_copied", [False, True])
    # The first is measured, and has a test of its own.
    monkeypatch.setattr(HostRows, "_measured", lambda *_: None)
    with kept_async() if is_async else nullcontext():
        ours, _ = swapped(tiny_llama, async_scheduling=is_async)
    assert ours.tokens == stock.tokens
    counted = ours.stats
    assert 0 < counted["swapped_out"] == counted["swapped_in"] < ours.preemptions
    assert counted["swapped_out"] + counted["swap_refused"] == ours.preemptions


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_host_memory_that_is_full(tiny_llama, stock, is_async):
    options = {"pyvattn": {"swap": "always", "swap_memory": "512KiB"}}
    with kept_async() if is_async else nullcontext():
        ours, _ = swapped(tiny_llama, async_scheduling=is_async, additional_config=options)
    assert ours.tokens == stock.tokens
    counted = ours.stats
    assert 0 < counted["swapped_in"] == counted["swapped_out"] < ours.preemptions
    assert counted["swap_refused"] == ours.preemptions - counted["swapped_out"]


def test_a_copy_back_that_fails_is_computed_anew(tiny_llama, stock, monkeypatch):
    monkeypatch.setattr(HostRows, "_measured", lambda *_: None)
    failing_at(monkeypatch, HostRows, "_copy_in", [True, False, False, False])
    ours, _ = swapped(tiny_llama)
    assert ours.tokens == stock.tokens
    assert 0 < ours.stats["swapped_in"] < ours.stats["swapped_out"]


def test_with_two_steps_under_way_a_copy_back_that_fails_ends_the_engine(tiny_llama, monkeypatch):
    """VLLM would let the step behind it say something of the request."""
    monkeypatch.setattr(HostRows, "_measured", lambda *_: None)
    failing_at(monkeypatch, HostRows, "_copy_in", [True])
    with kept_async(), pytest.raises(UnsupportedError, match="add --no-async-scheduling"):
        swapped(tiny_llama, async_scheduling=True)


@pytest.mark.parametrize("copying", [1e-9, 1e9], ids=["cheaper", "dearer"])
def test_what_is_cheaper_to_compute_anew_is_not_copied(tiny_llama, stock, monkeypatch, copying):
    monkeypatch.setattr(HostRows, "_measured", lambda *_: copying)
    ours, _ = swapped(tiny_llama, additional_config={"pyvattn": {"swap": "auto"}})
    assert ours.tokens == stock.tokens
    counted = ours.stats
    assert counted["compute_token_seconds"] > 0
    assert counted["swap_token_seconds"] == copying
    names = ("swapped_out", "swap_dearer") if copying < 1 else ("swap_dearer", "swapped_out")
    assert [counted[name] for name in names] == [ours.preemptions, 0]


def test_without_a_measure_of_computing_requests_are_copied(tiny_llama, monkeypatch):
    monkeypatch.setattr(StepClock, "token_seconds", lambda _: None)
    ours, _ = swapped(tiny_llama, additional_config={"pyvattn": {"swap": "auto"}})
    assert ours.stats["swapped_out"] == ours.preemptions > 0


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
