# SPDX-License-Identifier: Apache-2.0
"""Requests that wait have their rows mapped while others run, so a step waits for no driver."""

from __future__ import annotations

import pytest
from tiny_models import make_llama, random_prompts

from pyvattn import CacheSpec, KVCache
from pyvattn.integrations.transformers import Engine, spec_for
from pyvattn.integrations.transformers.ahead import RowsAhead
from pyvattn.integrations.transformers.request import Request
from pyvattn.prefix import PrefixIndex

LENGTH = 40


def open_kv(driver="host", slots=6, memory="64MiB", **options):
    spec = spec_for(make_llama(), max_slots=slots, max_tokens=128)
    return KVCache(spec, device="cpu", driver=driver, memory=memory, read_ahead=0, **options)


def driver_work(kv):
    """What waits and calls there were, in the step's thread and in all."""
    kv.drain()
    stats = kv.stats()
    return stats.map_seconds_blocking, stats.map_calls


@pytest.mark.parametrize("driver", ["host", "cumem-emulated", "stock-uvm-emulated"])
@pytest.mark.parametrize("prefix_reuse", [True, False])
def test_the_step_after_finds_the_next_prompts_mapped(driver, prefix_reuse):
    """One prompt a step: each after the first is admitted without a wait or a call of its own."""
    prompts = random_prompts([LENGTH] * 4)
    with (
        open_kv(driver) as kv,
        Engine(
            make_llama(), kv, max_prefill_tokens=LENGTH, lookahead=False, prefix_reuse=prefix_reuse
        ) as engine,
    ):
        requests = [engine.submit(prompt, 10) for prompt in prompts]
        engine.step()
        for admitted in range(2, 5):
            waited, calls = driver_work(kv)
            engine.step()
            assert len(engine.running) == admitted
            # The one behind it is mapped by now as well, by the other thread.
            after, calls_after = driver_work(kv)
            assert after == waited
            assert (calls_after > calls) == (admitted < 4)
        engine.run()
        assert all(len(request.output) == 10 for request in requests)
        engine.close()
        assert kv.stats().slots_live == 0


@pytest.mark.parametrize("driver", ["host", "stock-uvm-emulated"])
def test_prompts_of_several_pages_are_mapped_whole(driver):
    """More than what a free slot keeps for a typical request, which the cache maps by itself."""
    model = make_llama(max_position_embeddings=2048)
    prompts = random_prompts([LENGTH, 400, 600])
    with (
        KVCache(
            spec_for(model, max_slots=6, max_tokens=1024),
            device="cpu", driver=driver, memory="64MiB", page_size="64K", read_ahead=0,
        ) as kv,
        Engine(model, kv, max_prefill_tokens=200, lookahead=False) as engine,
    ):  # fmt: skip
        assert kv.geometry.pages(400) > 1
        for prompt in prompts:
            engine.submit(prompt, 10)
        while len(engine.running) < len(prompts):
            running = len(engine.running)
            waited, _ = driver_work(kv)
            engine.step()
            after, _ = driver_work(kv)
            # Nothing was running to hide the first behind.
            assert running == 0 or after == waited
        engine.run()


def test_rows_are_let_go_before_a_request_that_runs_would_be_sent_away():
    """Memory for what runs alone: the row of the one that waits is taken, and nobody leaves."""
    model = make_llama()
    with open_kv() as kv:
        page = kv.stats().page_size
        least = sum(each.pages(LENGTH + 30) * each.arenas for each in kv.geometries)
    with (
        open_kv(memory=(2 * least + 1) * page) as kv,
        Engine(model, kv, max_batch=2, max_prefill_tokens=2 * LENGTH, prefix_reuse=False) as engine,
    ):
        requests = [engine.submit(prompt, 30) for prompt in random_prompts([LENGTH] * 3)]
        engine.step()
        assert len(engine.running) == 2
        first = list(engine.running)
        while not any(request.done for request in first):
            engine.step()
            assert all(request.done or request.slot is not None for request in first)
        engine.run()
        assert all(len(request.output) == 30 for request in requests)


def waiting(count, length=LENGTH):
    return [Request([1] * length, 1) for _ in range(count)]


def alone(request):
    return False


def test_no_more_rows_are_held_than_slots_are_free():
    with open_kv(slots=3) as kv:
        ahead = RowsAhead(kv)
        kv.admit(LENGTH)
        ahead.want(waiting(5), alone)
        assert kv.stats().slots_live == 3
        ahead.want(waiting(1), alone)
        assert kv.stats().slots_live == 2
        assert ahead.let_go()
        assert kv.stats().slots_live == 1
        assert not ahead.let_go()


def test_no_more_rows_are_held_than_memory_is_free():
    with open_kv() as kv:
        needed = sum(each.pages(128) * each.arenas for each in kv.geometries)
        memory = 2 * needed * kv.stats().page_size
    with open_kv(memory=memory) as kv:
        kv.admit(128)
        RowsAhead(kv).want(waiting(2, 128), alone)
        assert kv.stats().slots_live == 2


def test_the_same_requests_are_looked_at_once():
    """Steps that only decode come by the thousand while the same ones wait."""
    asked = []
    with open_kv() as kv:
        ahead, requests = RowsAhead(kv), waiting(3)
        for _ in range(4):
            ahead.want(list(requests), asked.append)
        assert asked == requests
        ahead.let_go()
        ahead.want(requests, asked.append)
        assert asked == 2 * requests


def test_a_request_that_shares_gets_no_row():
    """Its pages are shared: a row of its own would be memory that nobody reads."""
    with open_kv() as kv:
        first, second = waiting(2)
        RowsAhead(kv).want([first, second], lambda request: request is first)
        assert kv.stats().slots_live == 1


def test_a_hit_is_known_before_the_admission_that_has_it():
    spec = CacheSpec(1, 4, 128, "float32", max_slots=4, max_tokens=256, guard_tokens=0)
    with KVCache(spec, device="cpu", page_size="64K", layout="layer", memory="64MiB") as kv:
        index = PrefixIndex(kv)
        prompt, other = random_prompts([3 * index.block_tokens, 3 * index.block_tokens])
        assert index.hit_of(prompt) == 0
        index.publish(index.admit(prompt).slot, prompt)
        assert index.hit_of(prompt) == 2 * index.block_tokens == index.admit(prompt).hit
        assert index.hit_of(other) == index.hit_of(prompt, salt=b"another") == 0
        index.close()


def test_where_nothing_fits_no_prompt_is_looked_up():
    """It would be hashed in every step of an engine whose memory is full."""
    with open_kv(slots=1) as kv:
        held = kv.admit(LENGTH)
        ahead = RowsAhead(kv)
        ahead.want([Request(prompt, 1) for prompt in random_prompts([LENGTH] * 2)], pytest.fail)
        assert not ahead.let_go()
        kv.release(held)
