# SPDX-License-Identifier: Apache-2.0
"""How the engine's steps fit together: packed and chunked prompts, late reading, failures."""

from __future__ import annotations

import pytest
from test_engine import PAGE, SHAPES, TIGHT, expected_output, open_kv
from tiny_models import make_gpt2, make_llama, random_prompts, torch

from pyvattn import errors
from pyvattn.integrations.transformers import Engine
from pyvattn.integrations.transformers.decode import batch_size


def assert_as_alone(model, requests):
    for request in requests:
        assert request.done
        assert request.output == expected_output(model, request.prompt, request.max_new_tokens)


@pytest.fixture
def forwards(monkeypatch):
    """The shapes of the batches that the model is run on."""
    shapes = []

    def watch(model):
        run = model.forward

        def forward(*args, **options):
            shapes.append(tuple(options["input_ids"].shape))
            return run(*args, **options)

        monkeypatch.setattr(model, "forward", forward)
        return shapes

    return watch


@pytest.mark.parametrize("lookahead", [False, True])
@pytest.mark.parametrize("make", [make_llama, make_gpt2])
def test_prompts_in_chunks_among_decoding_requests(make, lookahead):
    model = make()
    prompts = random_prompts([prompt for prompt, _ in SHAPES])
    with open_kv(model) as kv:
        with Engine(model, kv, max_prefill_tokens=7, lookahead=lookahead) as engine:
            shapes = zip(prompts, SHAPES, strict=True)
            requests = [engine.submit(prompt, new) for prompt, (_, new) in shapes]
            assert set(engine.run()) == set(requests)
        assert kv.stats().slots_live == 0
    assert_as_alone(model, requests)


def test_a_step_runs_the_prompts_that_fit_as_one_batch_and_cuts_the_last(llama, forwards):
    seen = forwards(llama)
    with open_kv(llama, slots=8) as kv, Engine(llama, kv, max_prefill_tokens=50) as engine:
        requests = [engine.submit(prompt, 4) for prompt in random_prompts([20, 15, 25, 3])]
        engine.step()
        assert [len(request.output) for request in requests] == [1, 1, 0, 0]
        assert [request.cached for request in requests] == [20, 15, 15, 0]
        engine.step()
        assert [len(request.output) for request in requests] == [2, 2, 1, 1]
        assert seen == [(1, 50), (2, 1), (1, 13)]
        engine.run()
    assert_as_alone(llama, requests)


def test_a_request_waits_while_the_prompts_of_a_step_are_full(llama):
    with open_kv(llama, slots=8) as kv, Engine(llama, kv, max_prefill_tokens=20) as engine:
        for prompt in random_prompts([20, 5]):
            engine.submit(prompt, 4)
        engine.step()
        assert [len(engine.running), len(engine.waiting)] == [1, 1]


def test_tokens_are_read_one_step_late(llama, kv, prompts, forwards):
    seen = forwards(llama)
    with Engine(llama, kv, lookahead=True) as engine:
        request = engine.submit(prompts[0], 5)
        known = []
        while engine.busy:
            engine.step()
            known.append((len(seen), len(request.output)))
        # Five launches; what the last one said is read by a step that launches nothing.
        assert known == [(1, 0), (2, 1), (3, 2), (4, 3), (5, 4), (5, 5)]
    assert_as_alone(llama, [request])


@pytest.mark.parametrize("lookahead", [False, True])
def test_what_runs_past_a_stop_token_is_dropped(llama, prompts, lookahead):
    whole = expected_output(llama, prompts[1], 20)
    stop = whole[7]
    with (
        open_kv(llama, slots=1) as kv,
        Engine(llama, kv, {stop}, lookahead=lookahead) as engine,
    ):
        first, second = (engine.submit(prompts[i], 20) for i in (1, 0))
        engine.run()
    assert first.output == whole[: whole.index(stop) + 1]
    after = expected_output(llama, prompts[0], 20)
    assert second.output == (after[: after.index(stop) + 1] if stop in after else after)


def test_requests_that_outgrow_the_memory_start_over_with_tokens_unread(llama):
    with open_kv(llama, slots=4, memory=5 * PAGE, **TIGHT) as kv:
        with Engine(llama, kv, lookahead=True) as engine:
            requests = [engine.submit(p, 30) for p in random_prompts([160, 155, 150, 145])]
            preempted = set()
            while engine.busy:
                engine.step()
                preempted |= {each for each in engine.waiting if each.output}
        assert preempted
        assert kv.stats().slots_live == 0
    assert_as_alone(llama, requests)


@pytest.mark.parametrize("failing", ["prefill", "decode"])
@pytest.mark.parametrize("lookahead", [False, True])
def test_a_forward_pass_that_fails_loses_no_token(llama, kv, monkeypatch, failing, lookahead):
    with Engine(llama, kv, lookahead=lookahead) as engine:
        requests = [engine.submit(prompt, 12) for prompt in random_prompts([9, 5])]
        for _ in range(3):
            engine.step()
        late = engine.submit(random_prompts([30])[0], 12)

        def fail(hidden, *_, **__):
            if (hidden.shape[1] > 1) == (failing == "prefill"):
                raise ZeroDivisionError
            return real(hidden)

        with monkeypatch.context() as patch:
            real = llama.model.layers[1].mlp.forward
            patch.setattr(llama.model.layers[1].mlp, "forward", fail)
            with pytest.raises(ZeroDivisionError):
                engine.step()
        engine.run()
    assert_as_alone(llama, [*requests, late])


@pytest.mark.parametrize("steps", range(1, 6))
def test_a_stop_token_that_is_read_after_a_failure_is_the_last(llama, kv, monkeypatch, steps):
    """A step that fails half-way leaves two launches to read, one past the stop token."""
    prompt = random_prompts([17])[0]
    whole = expected_output(llama, prompt, 5)
    assert whole[2] not in whole[:2]
    real = llama.model.layers[0].mlp.forward

    def fail(hidden):
        if hidden.shape[1] > 1:
            raise ZeroDivisionError
        return real(hidden)

    with Engine(llama, kv, {whole[2]}, lookahead=True) as engine:
        request = engine.submit(prompt, 5)
        for _ in range(steps):
            engine.step()
        engine.submit([5, 6, 7], 2)
        with monkeypatch.context() as patch:
            patch.setattr(llama.model.layers[0].mlp, "forward", fail)
            with pytest.raises(ZeroDivisionError):
                engine.step()
        engine.run()
    assert request.output == whole[:3]


def test_no_more_requests_run_than_there_are_slots(llama, prompts):
    with open_kv(llama, slots=2) as kv, Engine(llama, kv, max_batch=2**63) as engine:
        requests = [engine.submit(prompt, 4) for prompt in prompts]
        engine.step()
        assert len(engine.running) == 2
        assert set(engine.run()) == set(requests)


def test_no_more_requests_run_at_once_than_asked_for(llama):
    with open_kv(llama, slots=8) as kv, Engine(llama, kv, max_batch=2) as engine:
        requests = [engine.submit(prompt, 5) for prompt in random_prompts([5, 9, 3, 7])]
        most = 0
        while engine.busy:
            engine.step()
            most = max(most, len(engine.running))
        assert most == 2
    assert_as_alone(llama, requests)


def test_a_request_cancelled_with_a_token_unread_keeps_what_was_read(llama, kv, prompts):
    with Engine(llama, kv, lookahead=True) as engine:
        gone, stays = (engine.submit(prompt, 10) for prompt in prompts[:2])
        for _ in range(4):
            engine.step()
        engine.cancel(gone)
        again = engine.submit(prompts[2], 10)
        engine.run()
    assert gone.output == expected_output(llama, prompts[0], 3)
    assert_as_alone(llama, [stays, again])


@pytest.mark.parametrize("options", [{"max_batch": 0}, {"max_prefill_tokens": 0}])
def test_numbers_that_make_no_sense(llama, kv, options):
    (name,) = options
    with pytest.raises(errors.SpecError, match=f"{name}=0"):
        Engine(llama, kv, **options)
    assert kv.stats().slots_live == 0


@pytest.mark.parametrize(
    ("prompt", "message"),
    [([5, 97], "token 97 is outside"), ([-1], "token -1"), ("text", "tokenize"), ([1.5], "token")],
)
def test_what_is_no_prompt_of_the_model(llama, kv, prompt, message):
    with Engine(llama, kv) as engine, pytest.raises(errors.SpecError, match=message):
        engine.submit(prompt, 5)


def test_prompts_may_be_tensors(llama, kv, prompts):
    with Engine(llama, kv) as engine:
        request = engine.submit(torch.tensor(prompts[0]), 5)
        engine.run()
    assert request.output == expected_output(llama, prompts[0], 5)


def test_no_more_tokens_than_the_model_has_positions_for():
    model = make_gpt2()
    with open_kv(model, max_tokens=1024) as kv, Engine(model, kv) as engine:
        with pytest.raises(errors.LengthError, match="the model knows 512"):
            engine.submit([5] * 500, 14)
        request = engine.submit([5] * 500, 13)
        engine.run()
    assert len(request.output) == 13


@pytest.mark.parametrize("changes", [{"num_hidden_layers": 2}, {"num_key_value_heads": 4}])
def test_a_cache_for_another_model(kv, changes):
    other = make_llama(**changes)
    with pytest.raises(errors.SpecError, match="open the cache with spec_for"):
        Engine(other, kv)


def test_graphs_without_cuda_are_refused_and_nothing_is_switched(llama, kv):
    before = llama.config._attn_implementation
    with pytest.raises(errors.UnsupportedError, match="graphs=True: CUDA graphs need a CUDA"):
        Engine(llama, kv, graphs=True)
    assert llama.config._attn_implementation == before
    assert Engine(llama, kv).graphs is False


def test_sizes_of_captured_batches():
    sizes = [batch_size(rows, 300) for rows in range(1, 257)]
    assert all(size >= rows for rows, size in enumerate(sizes, start=1))
    assert all(size <= 1.25 * rows for rows, size in enumerate(sizes, start=1) if rows >= 8)
    assert sorted(set(sizes))[:10] == [1, 2, 4, 8, 10, 12, 14, 16, 20, 24]
    assert len(set(sizes)) < 30
    assert batch_size(33, 36) == 36


@torch.no_grad()
def test_the_engine_leaves_the_model_to_other_caches(llama, kv, prompts):
    expected = expected_output(llama, prompts[0], 6)
    with Engine(llama, kv) as engine:
        engine.submit(prompts[0], 6)
        engine.run()
    ids = torch.tensor([prompts[0]])
    assert llama.generate(ids, max_new_tokens=6, do_sample=False)[0, 3:].tolist() == expected


def test_a_model_that_leaves_layers_out_of_the_cache_says_nothing(llama, kv, monkeypatch):
    skipped = llama.model.layers[-1].self_attn
    monkeypatch.setattr(skipped, "forward", lambda hidden_states, **_: (hidden_states, None))
    with Engine(llama, kv) as engine:
        request = engine.submit([5, 6, 7], 4)
        with pytest.raises(errors.UnsupportedError, match="LlamaForCausalLM cached 2 of its 3"):
            engine.step()
    assert not request.output
