# SPDX-License-Identifier: Apache-2.0
"""Two engines in two processes that share one budget: tokens, leases, and who hands what over."""

from __future__ import annotations

import multiprocessing

import pytest
from server import CHUNK, CHUNKS, NEW, serve
from tiny_models import make_llama, random_prompts

from pyvattn import KVCache
from pyvattn.integrations.transformers import Engine, spec_for
from pyvattn.shared import read_ledgers

PATIENCE_S = 120.0


@pytest.fixture
def servers(runtime):
    """Two of them, as the ends of their pipes."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for name in ("one", "two"):
        here, there = context.Pipe()
        process = context.Process(target=serve, args=(there, name))
        process.start()
        there.close()
        pipes.append(here)
        processes.append(process)
    try:
        for pipe, name in zip(pipes, ("one", "two"), strict=True):
            assert pipe.poll(PATIENCE_S)
            assert pipe.recv() == name
        yield pipes
    finally:
        for process in processes:
            process.kill()
            process.join()


def answer(pipe):
    """What a server says, while the ledger is looked at again and again."""
    for _ in range(round(PATIENCE_S / 0.05)):
        if pipe.poll(0.05):
            return pipe.recv()
        check_ledger()
    raise AssertionError("no answer")


def check_ledger():
    (ledger,) = read_ledgers()
    leases = sum(member.lease for member in ledger.members)
    assert leases + ledger.free + ledger.cooling + ledger.unknown == CHUNKS * CHUNK
    return {member.name: member.lease // CHUNK for member in ledger.members}


def expected(prompts):
    model = make_llama(num_hidden_layers=4)
    with (
        KVCache(spec_for(model, max_slots=16, max_tokens=512), device="cpu", memory="64MiB") as c,
        Engine(model, c, prefix_reuse=False) as engine,
    ):
        requests = [engine.submit(prompt, NEW) for prompt in prompts]
        engine.run()
        return [request.output for request in requests]


def test_two_servers_share_one_budget_and_say_the_same_as_alone(servers):
    one, two = servers
    first = random_prompts([480, 480, 480, 200], seed=11)
    one.send(first)
    assert answer(one) == expected(first)
    # One is idle and keeps fourteen blocks for later prompts; a request of two needs four.
    second = random_prompts([480] * 3, seed=12)
    assert check_ledger()["one"] >= 14
    two.send(second)
    assert answer(two) == expected(second)
    assert check_ledger()["two"] >= 4
    # Both at once have use for twice what there is.
    third, fourth = random_prompts([300] * 6, seed=13), random_prompts([200] * 6, seed=14)
    one.send(third)
    two.send(fourth)
    assert answer(one) == expected(third)
    assert answer(two) == expected(fourth)
    for pipe in servers:
        pipe.send(None)
