# SPDX-License-Identifier: Apache-2.0
"""Real vLLM on a CPU, in two workers: each has half of the KV heads, in rows of its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from engines import WORKER, engine, generate
from test_vllm_connectors import offload, prompts, serve

# Twelve requests may run at once: eviction and preemption.
OPTIONS = {"tensor_parallel_size": 2, "num_gpu_blocks_override": 13}


@pytest.fixture(scope="module", autouse=True)
def unbound_threads():
    # Bound by themselves, workers want a NUMA node each.
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        yield


def run(model, **options):
    """Return what an engine says, and what each of its workers counted."""
    with engine(model, **OPTIONS, **options) as llm:
        said = generate(llm)
        counted = llm.collective_rpc("pyvattn_stats") if options else []
    return said, counted


@pytest.fixture(scope="module")
def stock(tiny_llama):
    said, _ = run(tiny_llama)
    return said


def test_two_workers_with_rows_of_their_own_say_what_stocks_two_say(tiny_llama, stock):
    ours, counted = run(tiny_llama, worker_cls=WORKER)
    assert ours.tokens == stock.tokens
    assert ours.cached == stock.cached > 0
    assert ours.preemptions == stock.preemptions > 0
    # The scheduler's ids are the same for both, and each maps them by itself.
    first, second = counted
    for name in ("requests", "blocks_placed"):
        assert first[name] == second[name] > 0
    assert first["map_calls"] > 0 < second["map_calls"]


def test_each_of_two_workers_swaps_its_part_of_what_is_preempted(tiny_llama, stock):
    transfer = {"kv_connector": "PyvattnSwapConnector", "kv_role": "kv_both"}
    swap = {"kv_transfer_config": transfer, "additional_config": {"pyvattn": {"swap": "always"}}}
    ours, counted = run(tiny_llama, worker_cls=WORKER, **swap)
    assert ours.tokens == stock.tokens
    assert ours.preemptions > 0
    first, second = counted
    for name in ("swapped_out", "swap_bytes_out", "swap_bytes_in"):
        assert first[name] == second[name] > 0


def test_each_of_two_workers_offloads_its_part_by_block_id(tiny_llama, monkeypatch):
    # Workers are processes of their own, and find the module that copies.
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    whole = sum(len(ids) // 128 * 128 for ids in prompts())
    tokens, ran, _ = serve(
        tiny_llama, tensor_parallel_size=2, worker_cls=WORKER, kv_transfer_config=offload()
    )
    # Computed in the first round, and not in the second.
    assert tokens[: len(prompts())] == tokens[len(prompts()) :]
    assert ran[0] - ran[1] == whole
