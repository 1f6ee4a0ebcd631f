# SPDX-License-Identifier: Apache-2.0
"""Requests whose prompts begin alike, with and without what they have in common."""

from __future__ import annotations

import pytest
import torch
from tiny_models import left_padded, make_llama, random_prompts, reference

from pyvattn import ArgumentError, KVCache, SpecError
from pyvattn.integrations.transformers import Engine, generate_batch, spec_for

PAGE = 64 << 10


@pytest.fixture(scope="module")
def model():
    # Sixteen tokens a page.
    return make_llama(head_dim=128, num_key_value_heads=8)


@pytest.fixture
def open_kv(model):
    """Open caches; afterwards all are closed."""
    opened = []

    def open_one(slots=8, memory="64MiB"):
        spec = spec_for(model, max_slots=slots, max_tokens=1024)
        kv = KVCache(spec, device="cpu", page_size=PAGE, memory=memory, layout="layer")
        opened.append(kv)
        return kv

    yield open_one
    for kv in opened:
        kv.close()


@pytest.fixture
def block(open_kv):
    return PAGE // open_kv().geometry.token_bytes


def alone(model, prompt, new):
    sequences = reference(model, left_padded([prompt]), max_new_tokens=new).sequences
    return sequences[0, len(prompt) :].tolist()


def prompts_of(block, own=5):
    """Return prompts that share two blocks and a bit."""
    shared, *tails = random_prompts([2 * block + 3, own, own + 1, own + 2, own + 3])
    return [shared + tail for tail in tails]


def test_tokens_are_those_of_no_reuse_and_prompts_are_computed_once(model, open_kv, block):
    prompts = prompts_of(block)
    kv = open_kv()
    with Engine(model, kv, max_prefill_tokens=2 * block) as engine:
        requests = [engine.submit(prompt, 20) for prompt in prompts]
        engine.run()
        assert [request.reused for request in requests] == [0] + [2 * block] * 3
        assert engine.prefixes.stats().hit_tokens == 6 * block
        later = engine.submit(prompts[0], 20)
        engine.run()
        assert later.reused >= 2 * block
    assert kv.stats().slots_live == 0
    for request in [*requests, later]:
        assert request.output == alone(model, request.prompt, 20)


def test_prompts_of_one_batch_share_what_it_computes(model, open_kv, block):
    prompts = prompts_of(block)
    with Engine(model, open_kv()) as engine:
        requests = [engine.submit(prompt, 1) for prompt in prompts]
        engine.step()
        assert [request.reused for request in requests] == [0] + [2 * block] * 3
        for request in requests:
            assert request.output == alone(model, request.prompt, 1)


def test_nobody_shares_what_a_failed_pass_did_not_compute(model, open_kv, block, monkeypatch):
    prompts = prompts_of(block)
    with Engine(model, open_kv()) as engine:
        requests = [engine.submit(prompt, 4) for prompt in prompts]
        prefill = engine._batch.prefill

        def fail_once(*arguments):
            monkeypatch.setattr(engine._batch, "prefill", prefill)
            raise RuntimeError("a pass that fails")

        monkeypatch.setattr(engine._batch, "prefill", fail_once)
        with pytest.raises(RuntimeError, match="a pass that fails"):
            engine.step()
        slot, hit = engine.prefixes.admit(prompts[0])
        assert hit == 0
        engine.prefixes.release(slot)
        engine.run()
        for request in requests:
            assert request.output == alone(model, request.prompt, 4)


def test_a_request_may_stay_out_and_salts_do_not_mix(model, open_kv, block):
    prompt = prompts_of(block)[0]
    with Engine(model, open_kv()) as engine:
        first = engine.submit(prompt, 3, salt="a")
        # Neither finds what others have, nor leaves anything for them.
        out = engine.submit(prompt, 3, reuse=False, salt="a")
        hidden = engine.submit(prompt, 3, reuse=False, salt="b")
        other = engine.submit(prompt, 3, salt="b")
        same = engine.submit(prompt, 3, salt="a")
        engine.run()
        requests = (first, out, hidden, other, same)
        assert [each.reused for each in requests] == [0, 0, 0, 0, 2 * block]
        assert len({tuple(each.output) for each in requests}) == 1
    with Engine(model, open_kv(), prefix_reuse=False) as engine:
        requests = [engine.submit(prompt, 3) for _ in range(2)]
        engine.run()
        assert [each.reused for each in requests] == [0, 0]
        assert engine.prefixes is None


def test_a_chat_goes_on_without_computing_what_was_said(model, open_kv, block):
    with Engine(model, open_kv()) as engine:
        said = random_prompts([block])[0]
        for turn in range(3):
            request = engine.submit(said, block)
            engine.run()
            assert request.output == alone(model, request.prompt, block)
            # All whole blocks whose K and V there are: the last token has none.
            assert request.reused == (len(said) - 1 - 3 * (turn > 0)) // block * block * (turn > 0)
            said = [*request.tokens, 1, 2, 3]


def test_samples_of_a_prompt_hold_it_once(model, open_kv, block):
    prompt = random_prompts([6 * block])[0]
    held = []
    kv = open_kv()
    with Engine(model, kv, on_step=lambda engine: held.append(kv.stats().pages_live)) as engine:
        torch.manual_seed(0)
        samples = engine.submit_samples(prompt, 4, 4, do_sample=True, temperature=3.0)
        engine.run()
    assert [each.reused for each in samples] == [0] + [5 * block] * 3
    assert len({tuple(each.output) for each in samples}) > 1
    arenas = kv.geometry.arenas
    guard = -(-kv.spec.guard_tokens // block)
    assert max(held) <= arenas * (5 + 4 * (2 + guard))


def test_reuse_gives_way_to_requests_that_run(model, open_kv, block):
    # Memory for little more than one request.
    arenas = open_kv().geometry.arenas
    kv = open_kv(memory=arenas * PAGE * 10)
    with Engine(model, kv) as engine:
        for seed in range(4):
            prompt = random_prompts([5 * block], seed=seed)[0]
            request = engine.submit(prompt, block)
            engine.run()
            assert request.output == alone(model, prompt, block)
        assert engine.prefixes.stats().evicted_slots > 0


def test_a_batch_that_failed_is_not_shared(model, open_kv, block, monkeypatch):
    prompts = prompts_of(block)
    with Engine(model, open_kv()) as engine:
        requests = [engine.submit(prompt, 4) for prompt in prompts]
        prefill = engine._batch.prefill
        monkeypatch.setattr(engine._batch, "prefill", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.step()
        assert engine.prefixes.stats().kept_slots == 0
        monkeypatch.setattr(engine._batch, "prefill", prefill)
        engine.run()
        for request in requests:
            assert request.output == alone(model, request.prompt, 4)


def test_cancelled_requests_leave_what_they_computed(model, open_kv, block):
    prompt = random_prompts([3 * block + 1])[0]
    with Engine(model, open_kv(), max_prefill_tokens=2 * block) as engine:
        cancelled = engine.submit(prompt, 4)
        engine.step()
        engine.cancel(cancelled)
        request = engine.submit(prompt, 4)
        engine.run()
        assert request.reused == 2 * block
        assert request.output == alone(model, prompt, 4)


def test_generate_batch_counts_what_it_reused(model, open_kv, block):
    prompts = prompts_of(block)
    requests = generate_batch(model, prompts, max_new_tokens=6, cache=open_kv())
    assert [request.reused for request in requests] == [0] + [2 * block] * 3
    without = generate_batch(model, prompts, max_new_tokens=6, cache=open_kv(), prefix_reuse=False)
    assert [request.reused for request in without] == [0] * 4
    assert [each.output for each in requests] == [each.output for each in without]


def test_what_submit_refuses(model, open_kv):
    with Engine(model, open_kv()) as engine:
        with pytest.raises(ArgumentError, match="salt"):
            engine.submit([1], 1, salt=3)
        with pytest.raises(SpecError, match="n=0"):
            engine.submit_samples([1], 1, 0)
