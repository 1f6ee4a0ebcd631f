# SPDX-License-Identifier: Apache-2.0
"""Continuous batching of models whose layers keep states, in the slots of the cache."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_states import JAMBA, MODELS, PROMPTS, tiny, tiny_of
from tiny_models import dynamic, generate, left_padded, random_prompts, reference, torch

from pyvattn import KVCache, errors
from pyvattn.integrations.transformers import Engine, VAttentionCache, generate_batch, spec_for

NEW = 24
PAGE = 64 << 10
# No more than 128 tokens of all layers to a page; the states of a request take another.
SMALL_PAGES = {"device": "cpu", "driver": "host", "page_size": PAGE, "layout": "token"}


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return tiny(request.param)


@pytest.fixture(scope="module")
def expected(model):
    """What the library says alone to each of the prompts."""
    return [alone(model, prompt) for prompt in PROMPTS]


def alone(model, prompt, new=NEW):
    inputs = {"input_ids": torch.tensor([prompt])}
    return reference(model, inputs, max_new_tokens=new).sequences[0, len(prompt) :].tolist()


def open_kv(model, slots=8, memory="64MiB", **options):
    spec = spec_for(model, max_slots=slots, max_tokens=256)
    return KVCache(spec, memory=memory, **{**SMALL_PAGES, **options})


@pytest.mark.parametrize("max_prefill_tokens", [7, 8192])
@pytest.mark.parametrize("max_batch", [2, 64])
def test_tokens_are_the_librarys(model, expected, max_prefill_tokens, max_batch):
    options = {"max_prefill_tokens": max_prefill_tokens, "max_batch": max_batch, "strict": True}
    requests = generate_batch(model, PROMPTS, max_new_tokens=NEW, memory="64MiB", **options)
    assert [request.output for request in requests] == expected
    assert len({token for output in expected for token in output}) > 20


def test_requests_come_and_go_while_others_run(model, expected):
    with open_kv(model, slots=3) as kv, Engine(model, kv, max_prefill_tokens=16) as engine:
        requests = []
        for prompt, new in zip(PROMPTS * 2, (20, 4, 9, 24, 11, 24, 3, 17), strict=True):
            requests.append(engine.submit(prompt, new))
            engine.step()
            engine.step()
        cancelled = engine.submit(PROMPTS[1], 24)
        engine.step()
        engine.cancel(cancelled)
        engine.run()
    for request, output in zip(requests, expected * 2, strict=True):
        assert request.output == output[: request.max_new_tokens]


@pytest.mark.parametrize("preemption", ["swap", "recompute"])
def test_requests_that_had_to_leave_go_on_where_they_were(model, preemption):
    prompts = random_prompts((124, 122, 120, 118))
    # Three begin, with pages of tokens and one of states each, and one can grow into another.
    pages = -(-124 * spec_for(model, max_slots=1, max_tokens=256).token_bytes // PAGE)
    with (
        open_kv(model, memory=(3 * (pages + 1) + 1) * PAGE, background=False) as kv,
        Engine(model, kv, preemption=preemption, max_prefill_tokens=50) as engine,
    ):
        requests = [engine.submit(prompt, 20) for prompt in prompts]
        engine.run()
        counts = engine.preemptions()
    assert (counts.swapped if preemption == "swap" else counts.recomputed) > 0
    assert [r.output for r in requests] == [alone(model, prompt, 20) for prompt in prompts]


@pytest.mark.parametrize("at", [0, 1])
def test_a_pass_that_failed_halfway_is_computed_anew(model, expected, monkeypatch, at):
    """``at``: in the first chunk of a prompt, or in a step of all."""
    with open_kv(model) as kv, Engine(model, kv) as engine:
        requests = [engine.submit(prompt, NEW) for prompt in PROMPTS[: 1 + 3 * at]]
        for _ in range(3 * at):
            engine.step()
        with monkeypatch.context() as patched:
            # The layers before have written their states.
            patched.setattr(model.model.layers[3], "forward", lambda *_, **__: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                engine.step()
        engine.run()
    assert [request.output for request in requests] == expected[: len(requests)]


def test_states_are_counted_and_end_with_their_requests(model):
    with open_kv(model) as kv:
        counts = {"falcon_h1": 4, "zamba2": 4}
        layers = counts.get(model.config.model_type, 2)
        assert [group.layers for group in kv.spec.states] == [tuple(range(layers))]
        with Engine(model, kv) as engine:
            request = engine.submit(PROMPTS[1], 5)
            engine.step()
            used = kv.stats().bytes_used
            assert used >= kv.spec.bytes_at(len(PROMPTS[1]))
            state = kv.state(1, np.from_dlpack)
            assert all(tensor[request.slot.index].any() for tensor in state.values())
            engine.run()
        assert kv.stats().bytes_used == 0
        slot = kv.admit(1)
        assert not any(tensor[slot.index].any() for tensor in kv.state(1, np.from_dlpack).values())
        kv.release(slot)


def test_samples_of_one_prompt_are_requests_of_their_own(model, expected):
    with open_kv(model) as kv, Engine(model, kv) as engine:
        block = engine.prefixes.block_tokens
        requests = engine.submit_samples(PROMPTS[3], NEW, n=3)
        engine.run()
    assert [request.output for request in requests] == [expected[3]] * 3
    # Most have fewer tokens than fill a page.
    shared = (len(PROMPTS[3]) - 1) // block * block
    assert [request.reused for request in requests] == [0, shared, shared]


def test_what_cannot_be_is_refused(model):
    spec = spec_for(model, max_slots=2, max_tokens=64)
    for option in ("graphs", "compile"):
        refused = pytest.raises(errors.UnsupportedError, match=f"{option}=True")
        with KVCache(spec, memory="16MiB", **SMALL_PAGES) as kv, refused:
            Engine(model, kv, **{option: True})
    bare = replace(spec, states=())
    refused = pytest.raises(errors.SpecError, match=r"the cache has states=\(\)")
    with KVCache(bare, memory="16MiB", **SMALL_PAGES) as kv, refused:
        Engine(model, kv)


def test_code_that_cannot_go_on_with_several_tokens_is_refused():
    model = tiny_of("Jamba", "Jamba", JAMBA)
    with pytest.raises(errors.UnsupportedError, match=r"JambaMambaMixer .* begins its state anew"):
        generate_batch(model, PROMPTS, max_new_tokens=2, memory="64MiB")


def test_generate_goes_on_after_a_batch(model, expected):
    generate_batch(model, PROMPTS[:2], max_new_tokens=2, memory="16MiB")
    inputs = left_padded(PROMPTS)
    with VAttentionCache.for_model(model, max_batch=4, max_tokens=128, memory="64MiB") as cache:
        assert cache.kv.spec.states == ()
        ours = generate(model, inputs, cache).sequences
    theirs = generate(model, inputs, dynamic(model)).sequences
    assert torch.equal(ours, theirs)
