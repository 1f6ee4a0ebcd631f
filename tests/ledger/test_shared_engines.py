# SPDX-License-Identifier: Apache-2.0
"""Two engines of transformers whose caches lease their memory from one ledger."""

from __future__ import annotations

import time
from contextlib import ExitStack

import pytest
from tiny_models import make_llama, random_prompts

from pyvattn import KVCache, OutOfMemory, SharedMemory
from pyvattn.integrations.transformers import Engine, spec_for

# A page of 128 tokens.
CHUNK = 64 << 10
CHUNKS = 16
NEW = 12
PATIENCE_S = 120.0


@pytest.fixture(scope="module")
def model():
    return make_llama(num_hidden_layers=4)


@pytest.fixture
def start(runtime):
    """Start engines of one ledger, each with a model of its own; they end with the test."""
    with ExitStack() as stack:

        def start(name, guarantee=0, **options):
            model = make_llama(num_hidden_layers=4)
            memory = stack.enter_context(
                SharedMemory(
                    "cpu", budget=CHUNKS * CHUNK, chunk_size=CHUNK, guarantee=guarantee, name=name
                )
            )
            cache = KVCache(
                spec_for(model, max_slots=16, max_tokens=512),
                device="cpu",
                memory=memory,
                page_size="64K",
                layout="token",
            )
            return stack.enter_context(Engine(model, stack.enter_context(cache), **options))

        yield start


def prompts(count, tokens, seed):
    return random_prompts([tokens] * count, seed=seed)


def expected(model, prompts, new=NEW):
    """What one engine with all the memory it wants says."""
    with (
        KVCache(spec_for(model, max_slots=16, max_tokens=512), device="cpu", memory="64MiB") as c,
        Engine(model, c, prefix_reuse=False) as engine,
    ):
        requests = [engine.submit(prompt, new) for prompt in prompts]
        engine.run()
        return [request.output for request in requests]


def until(condition, *engines):
    """Step the engines in turn until it is so, as two processes do side by side."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "it never came to that"
        for engine in engines:
            engine.step()
        held = sum(engine.cache.lease.held for engine in engines)
        assert held <= CHUNKS * CHUNK


def all_done(requests):
    return lambda: all(request.done for request in requests)


def test_an_idle_engine_hands_what_it_keeps_to_a_busy_one(start, model):
    one, two = start("one"), start("two")
    first, second = prompts(3, 400, seed=1), prompts(3, 480, seed=2)
    requests = [one.submit(prompt, NEW) for prompt in first]
    until(all_done(requests), one)
    kept = one.prefixes.kept_pages()
    assert kept > CHUNKS // 2
    more = [two.submit(prompt, NEW) for prompt in second]
    until(lambda: two.cache.lease.held > (CHUNKS - kept) * CHUNK, one, two)
    until(all_done(more), one, two)
    assert [request.output for request in requests + more] == expected(model, first + second)


def test_two_busy_engines_share_what_is_short_and_say_the_same_as_alone(start, model):
    one, two = start("one"), start("two")
    # Each of them could use all of it.
    texts = prompts(6, 300, seed=3), prompts(6, 200, seed=4)
    requests = [
        engine.submit(prompt, NEW)
        for engine, each in zip((one, two), texts, strict=True)
        for prompt in each
    ]
    until(all_done(requests), one, two)
    assert [request.output for request in requests] == expected(model, texts[0] + texts[1])


def test_running_requests_end_for_one_below_its_guarantee_and_go_on_later(start, model):
    one = start("one")
    first = prompts(4, 420, seed=5)
    requests = [one.submit(prompt, 60) for prompt in first]
    until(lambda: all(request.output for request in requests), one)
    assert one.cache.lease.held > 12 * CHUNK
    # It joins late: nothing of its guarantee is free.
    two = start("two", guarantee=10 * CHUNK)
    second = prompts(3, 300, seed=6)
    more = [two.submit(prompt, NEW) for prompt in second]
    until(all_done(more), one, two)
    assert not all(request.done for request in requests)
    assert two.cache.lease.leased >= 10 * CHUNK
    until(all_done(requests), one, two)
    assert [request.output for request in requests] == expected(model, first, 60)
    assert [request.output for request in more] == expected(model, second)


def test_no_request_ends_because_a_neighbour_only_wants_more(start, model):
    one, two = start("one"), start("two")
    first = prompts(4, 420, seed=7)
    requests = [one.submit(prompt, 20) for prompt in first]
    until(lambda: len(one.running) == 4, one)
    (second,) = prompts(1, 400, seed=8)
    waits = two.submit(second, NEW)
    while not any(request.done for request in requests):
        assert len(one.running) == 4
        two.step()
        assert not waits.output
        one.step()
    until(lambda: waits.done, one, two)
    assert waits.output == expected(model, [second])[0]


def test_a_request_that_no_neighbour_can_make_room_for_is_refused(start):
    start("one", guarantee=13 * CHUNK)
    two = start("two")
    (prompt,) = prompts(1, 400, seed=9)
    request = two.submit(prompt, NEW)
    with pytest.raises(OutOfMemory, match="does not fit in the cache even alone"):
        two.step()
    assert not two.busy
    assert not request.output
