# SPDX-License-Identifier: Apache-2.0
"""Prompts that begin alike, to models whose layers keep states: what is reused, and the tokens."""

from __future__ import annotations

import random

import pytest
from test_state_batches import PAGE, SMALL_PAGES
from test_states import MODELS, ZAYA, tiny_of
from tiny_models import random_prompts, reference, torch

from pyvattn import KVCache
from pyvattn.integrations.transformers import Engine, generate_batch, spec_for

NEW = 8
# Zaya's layers have a window as well.
FAMILIES = {**MODELS, "Zaya": ("Zaya", ZAYA)}
# So that few tokens fill a page: 16 of most.
WIDE = {"head_dim": 64, "num_key_value_heads": 4}


@pytest.fixture(scope="module", params=FAMILIES)
def every_model(request):
    family, sizes = FAMILIES[request.param]
    return tiny_of(request.param, family, {**sizes, **WIDE})


@pytest.fixture(scope="module")
def model():
    family, sizes = MODELS["Qwen3_5"]
    return tiny_of("Qwen3_5", family, {**sizes, **WIDE})


@pytest.fixture
def open_kv(model):
    """Open caches; afterwards all are closed."""
    opened = []

    def open_one(model, slots=16, memory="64MiB", **options):
        spec = spec_for(model, max_slots=slots, max_tokens=512)
        opened.append(KVCache(spec, memory=memory, **{**SMALL_PAGES, **options}))
        return opened[-1]

    yield open_one
    for kv in opened:
        kv.close()


def alone(model, prompt, new):
    """What the library says to a prompt, in which token 0 is no padding."""
    ids = torch.tensor([prompt])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return reference(model, inputs, max_new_tokens=new).sequences[0, len(prompt) :].tolist()


def prompts_of(block, own=(5, 6, 7, 8)):
    """Return prompts that share a block and a bit."""
    shared, *tails = random_prompts([block + 3, *own])
    return [shared + tail for tail in tails]


def check(model, requests):
    for request in requests:
        new = request.max_new_tokens
        assert request.output == alone(model, request.prompt, new)[: len(request.output)]
        assert len(request.output) == new


def test_the_beginning_that_prompts_have_in_common_is_computed_once(every_model, open_kv):
    model, kv = every_model, open_kv(every_model, strict=True)
    with Engine(model, kv, max_prefill_tokens=10) as engine:
        block = engine.prefixes.block_tokens
        requests = [engine.submit(prompt, NEW) for prompt in prompts_of(block)]
        engine.run()
        # Each ends in the first's last whole block, whose states were kept.
        assert [request.reused for request in requests] == [0] + [block] * 3
        stats = engine.prefixes.stats()
        assert (stats.hits, stats.hit_tokens) == (3, 3 * block)
        assert stats.snapshots >= 1
    assert kv.stats().slots_live == 0
    check(model, requests)


def test_where_two_prompts_part_the_third_goes_on(every_model, open_kv):
    model = every_model
    with Engine(model, open_kv(model)) as engine:
        block = engine.prefixes.block_tokens
        prompts = prompts_of(block, own=[block] * 3)
        requests = [engine.submit(prompt, NEW) for prompt in prompts]
        engine.run()
        assert [request.reused for request in requests] == [0, 0, block]
    check(model, requests)


def test_samples_share_their_prompt(model, open_kv):
    with Engine(model, open_kv(model)) as engine:
        block = engine.prefixes.block_tokens
        (prompt,) = random_prompts([block + 9])
        requests = engine.submit_samples(prompt, NEW, n=3)
        engine.run()
    assert [request.reused for request in requests] == [0] + [block] * 2
    check(model, requests)


def test_a_chat_goes_on_where_it_was(every_model, open_kv):
    model = every_model
    with Engine(model, open_kv(model)) as engine:
        (said,) = random_prompts([engine.prefixes.block_tokens + 9])
        before = 0
        for _ in range(3):
            request = engine.submit(said, NEW)
            engine.run()
            # All but the last token of an answer, which nobody has run yet.
            assert request.reused == before
            check(model, [request])
            before = len(request.tokens) - 1
            said = [*request.tokens, 1, 2, 3]


@pytest.mark.parametrize("lookahead", [False, True])
def test_an_answer_that_ended_early_goes_on_as_well(model, open_kv, lookahead):
    """With ``lookahead`` the states have seen the token that ended it as well."""
    (prompt,) = random_prompts([30])
    stop = alone(model, prompt, NEW)[4]
    with Engine(model, open_kv(model), stop_tokens=[stop], lookahead=lookahead) as engine:
        request = engine.submit(prompt, NEW)
        engine.run()
        assert request.output[-1] == stop
        assert len(request.output) < NEW
        follow = engine.submit([*request.tokens, 5, 6], 3)
        engine.run()
        assert follow.reused == len(request.tokens) - (not lookahead)
    assert follow.output == alone(model, follow.prompt, 3)[: len(follow.output)]


def test_salts_do_not_mix_and_a_request_may_stay_out(model, open_kv):
    with Engine(model, open_kv(model)) as engine:
        prompt = prompts_of(engine.prefixes.block_tokens)[0]
        first = engine.submit(prompt, 3, salt="a")
        out = engine.submit(prompt, 3, reuse=False, salt="a")
        other = engine.submit(prompt, 3, salt="b")
        same = engine.submit(prompt, 3, salt="a")
        engine.run()
        reused = [each.reused for each in (first, out, other, same)]
        assert reused == [0, 0, 0, engine.prefixes.block_tokens]
    check(model, (first, out, other, same))
    with Engine(model, open_kv(model), prefix_reuse=False) as engine:
        assert engine.prefixes is None
        request = engine.submit(prompt, 3)
        engine.run()
    check(model, [request])


@pytest.mark.parametrize("preemption", ["swap", "recompute"])
def test_what_is_kept_gives_way_and_requests_that_left_come_back(model, open_kv, preemption):
    block, requests = 16, []
    # Pages for tokens and states of two requests, and for little that is kept beside them.
    with Engine(model, open_kv(model, memory=7 * PAGE), preemption=preemption) as engine:
        assert engine.prefixes.block_tokens == block
        for prompt in prompts_of(block, own=[3, 20, 10, 13, 20, 6]):
            requests.append(engine.submit(prompt, 2 * NEW))
        engine.run()
        assert engine.prefixes.stats().evicted_slots > 0
        counts = engine.preemptions()
        assert (counts.swapped if preemption == "swap" else counts.recomputed) > 0
        assert any(request.reused for request in requests)
    check(model, requests)


def test_a_pass_that_failed_leaves_nothing_to_be_found(model, open_kv, monkeypatch):
    with Engine(model, open_kv(model)) as engine:
        requests = [engine.submit(p, NEW) for p in prompts_of(engine.prefixes.block_tokens)]
        with monkeypatch.context() as patched:
            # The layers before have written their states.
            patched.setattr(model.model.layers[3], "forward", lambda *_, **__: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                engine.step()
        assert engine.prefixes.stats().kept_slots == 0
        engine.run()
    check(model, requests)


def test_random_requests_say_what_they_say_alone(model, open_kv):
    source, kv = random.Random(5), open_kv(model, memory="1MiB")
    known: dict[tuple[int, ...], list[int]] = {}
    with Engine(model, kv, max_prefill_tokens=20, max_batch=3) as engine:
        block, requests = engine.prefixes.block_tokens, []
        prompts = prompts_of(block, own=(3, 20, block + 1))
        for _ in range(30):
            prompt = tuple(source.choice(prompts))
            if requests and source.random() < 0.3:
                chosen = source.choice(requests)
                prompt = (*chosen.tokens, source.randrange(3))
            if len(prompt) < 100:
                requests.append(engine.submit(prompt, 6, salt=source.choice("ab")))
            if source.random() < 0.2:
                engine.cancel(source.choice(requests))
            engine.step()
        engine.run()
        assert engine.prefixes.stats().hits > 5
    for request in requests:
        prompt = tuple(request.prompt)
        if prompt not in known:
            known[prompt] = alone(model, request.prompt, 6)
        assert request.output == known[prompt][: len(request.output)]
        assert request.done is False or len(request.output) == 6


def test_generate_batch_counts_what_it_reused(model):
    requests = generate_batch(
        model, prompts_of(16), max_new_tokens=NEW, memory="64MiB", page_size=PAGE, layout="token"
    )
    assert all(request.reused > 0 for request in requests[1:])
    check(model, requests)
