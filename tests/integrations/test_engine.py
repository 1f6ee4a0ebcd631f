# SPDX-License-Identifier: Apache-2.0
"""Continuous batching against one-by-one generation with the library's own cache."""

from __future__ import annotations

import pytest
from tiny_models import left_padded, make_gpt2, make_llama, random_prompts, reference

from pyvattn import KVCache, errors
from pyvattn.integrations.transformers import Engine, spec_for

# Prompt tokens and new tokens of each request: short and long ones mixed.
SHAPES = [(3, 30), (40, 5), (9, 12), (1, 20), (60, 17), (25, 1), (7, 40), (33, 8), (12, 25), (5, 9)]


def open_kv(model, slots=3, max_tokens=128, memory="64MiB", **options):
    spec = spec_for(model, max_slots=slots, max_tokens=max_tokens)
    return KVCache(spec, device="cpu", memory=memory, **options)


def expected_output(model, prompt, new, **options):
    inputs = left_padded([prompt])
    sequences = reference(model, inputs, max_new_tokens=new, **options).sequences
    return sequences[0, len(prompt) :].tolist()


@pytest.mark.parametrize("make", [make_llama, make_gpt2])
@pytest.mark.parametrize("layout", ["layer", "token"])
def test_requests_that_join_and_leave_get_the_tokens_they_get_alone(make, layout):
    model = make()
    prompts = random_prompts([prompt for prompt, _ in SHAPES])
    joined_late = []

    def watch(engine):
        ages = [len(request.output) for request in engine.running]
        assert len(engine.running) <= 3
        joined_late.append(1 in ages and max(ages) > 1)

    with open_kv(model, layout=layout) as kv:
        engine = Engine(model, kv, on_step=watch)
        shapes = zip(prompts, SHAPES, strict=True)
        requests = [engine.submit(prompt, new) for prompt, (_, new) in shapes]
        finished = engine.run()
        assert kv.stats().slots_live == 0
    assert sum(joined_late) >= 5
    assert finished != requests
    assert set(finished) == set(requests)
    for request in requests:
        assert request.done
        assert request.output == expected_output(model, request.prompt, request.max_new_tokens)


def test_requests_may_be_submitted_while_others_run(llama, kv, prompts):
    engine = Engine(llama, kv)
    first = engine.submit(prompts[3], 20)
    for _ in range(5):
        engine.step()
    second = engine.submit(prompts[1], 6)
    assert engine.run() == [second, first]
    for request in (first, second):
        assert request.output == expected_output(llama, request.prompt, request.max_new_tokens)


def test_a_stop_token_ends_a_request_and_is_kept(llama, kv, prompts):
    whole = expected_output(llama, prompts[1], 20)
    stop = whole[7]
    engine = Engine(llama, kv, stop_tokens={stop})
    request = engine.submit(prompts[1], 20)
    engine.run()
    assert request.output == whole[: whole.index(stop) + 1]


# With these a page holds 170 tokens of the Llama.
TIGHT = {"page_size": "64K", "layout": "token", "max_tokens": 1024}
PAGE = 64 << 10


def test_requests_that_outgrow_the_memory_wait_and_start_over(llama):
    """Four requests begin with a page each and need two; there are five."""
    with open_kv(llama, slots=4, memory=5 * PAGE, **TIGHT) as kv:
        engine = Engine(llama, kv)
        requests = [engine.submit(p, 30) for p in random_prompts([160, 155, 150, 145])]
        preempted = set()
        while engine.busy:
            engine.step()
            preempted |= {each for each in engine.waiting if each.output}
        assert preempted
        assert requests[0] not in preempted
        assert kv.stats().slots_live == 0
    for request in requests:
        assert request.output == expected_output(llama, request.prompt, 30)


def test_a_request_that_never_fits_is_dropped_and_the_others_go_on(llama):
    with open_kv(llama, slots=2, memory=2 * PAGE, **TIGHT) as kv:
        engine = Engine(llama, kv)
        doomed = engine.submit([5] * 400, 4)
        small = engine.submit([5, 6, 7], 4)
        with pytest.raises(errors.OutOfMemory, match="400 tokens"):
            engine.run()
        assert not doomed.done
        assert engine.run() == [small]


def test_slots_that_others_hold_lose_no_request(llama, kv):
    engine = Engine(llama, kv)
    request = engine.submit([5, 6, 7], 4)
    held = [kv.acquire() for _ in range(3)]
    with pytest.raises(errors.OutOfSlots):
        engine.step()
    kv.release(held[0])
    assert engine.run() == [request]


def test_cancel_waiting_and_running(llama, kv, prompts):
    engine = Engine(llama, kv)
    requests = [engine.submit(prompt, 10) for prompt in prompts]
    engine.step()
    engine.cancel(requests[0])
    engine.cancel(requests[3])
    assert kv.stats().slots_live == 2
    assert set(engine.run()) == set(requests[1:3])
    assert len(requests[0].output) == 1
    assert requests[3].output == []


def test_close_releases_every_slot(llama, kv, prompts):
    engine = Engine(llama, kv)
    for prompt in prompts:
        engine.submit(prompt, 10)
    engine.step()
    engine.close()
    assert kv.stats().slots_live == 0
    assert not engine.busy


@pytest.mark.parametrize(
    ("length", "new", "error"),
    [(0, 5, errors.SpecError), (5, 0, errors.SpecError), (100, 30, errors.LengthError)],
)
def test_requests_that_cannot_be(llama, kv, length, new, error):
    engine = Engine(llama, kv)
    with pytest.raises(error):
        engine.submit([5] * length, new)
    assert not engine.busy


def test_a_request_may_fill_its_slot_to_the_last_token(llama, kv):
    engine = Engine(llama, kv)
    request = engine.submit([5] * 100, 29)
    engine.run()
    assert request.output == expected_output(llama, request.prompt, 29)
