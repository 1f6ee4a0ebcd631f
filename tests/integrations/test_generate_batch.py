# SPDX-License-Identifier: Apache-2.0
"""generate_batch: many prompts in one call, and what it refuses."""

from __future__ import annotations

import warnings

import pytest
from test_engine import expected_output
from tiny_models import VOCABULARY, left_padded, random_prompts, reference, torch
from transformers import GenerationConfig

from pyvattn import errors
from pyvattn.integrations.transformers import VAttentionCache, generate_batch
from pyvattn.integrations.transformers.sampling import Samplers

LENGTHS = (3, 17, 9, 40, 1, 25)


@pytest.fixture
def batch(llama):
    """generate_batch with the Llama and memory for it."""

    def call(prompts, **options):
        return generate_batch(llama, prompts, **{"memory": "64MiB", **options})

    return call


def test_outputs_come_in_the_order_of_the_prompts(llama, batch):
    prompts = random_prompts(LENGTHS)
    requests = batch(prompts, max_new_tokens=20, max_batch=2)
    assert [request.prompt for request in requests] == prompts
    for request in requests:
        assert request.done
        assert request.output == expected_output(llama, request.prompt, 20)


def test_every_prompt_may_have_a_limit_of_its_own(llama, batch):
    prompts, limits = random_prompts(LENGTHS), [5, 1, 12, 3, 20, 8]
    requests = batch(prompts, max_new_tokens=limits)
    assert [len(request.output) for request in requests] == limits
    for request, limit in zip(requests, limits, strict=True):
        assert request.output == expected_output(llama, request.prompt, limit)


@pytest.mark.parametrize("several", [False, True])
def test_the_generation_config_ends_requests(llama, batch, several):
    prompt = random_prompts(LENGTHS)[1]
    whole = expected_output(llama, prompt, 20)
    ends = [whole[6], VOCABULARY + 5] if several else whole[6]
    config = GenerationConfig(max_new_tokens=20, eos_token_id=ends)
    (request,) = batch([prompt], generation_config=config)
    assert request.output == whole[: whole.index(whole[6]) + 1]
    sequences = reference(llama, left_padded([prompt]), generation_config=config).sequences
    assert request.output == sequences[0, len(prompt) :].tolist()


def test_a_cache_of_the_callers_is_used_and_stays_open(llama, kv):
    prompts = random_prompts(LENGTHS)
    requests = generate_batch(llama, prompts, max_new_tokens=9, cache=kv)
    assert not kv.closed
    assert kv.stats().slots_live == 0
    assert kv.stats().map_calls > 0
    assert all(each.output == expected_output(llama, each.prompt, 9) for each in requests)


def test_no_prompts(batch):
    assert batch([], max_new_tokens=5) == []


def test_sampling_is_repeatable_and_the_likeliest_of_one_is_greedy(llama, batch):
    prompts = random_prompts(LENGTHS)

    def sampled(seed, **options):
        torch.manual_seed(seed)
        config = GenerationConfig(max_new_tokens=15, do_sample=True, **options)
        return [request.output for request in batch(prompts, generation_config=config)]

    assert sampled(3, temperature=1.5) == sampled(3, temperature=1.5)
    assert sampled(3, temperature=1.5) != sampled(4, temperature=1.5)
    greedy = [request.output for request in batch(prompts, max_new_tokens=15)]
    assert sampled(5, top_k=1) == greedy


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        ({"temperature": 2.0}, {0, 1, 2, 3}),
        ({"top_k": 2}, {2, 3}),
        ({"top_p": 0.6}, {2, 3}),
        ({"min_p": 0.5}, {2, 3}),
    ],
)
def test_tokens_are_drawn_as_the_config_says(llama, settings, allowed):
    weights = torch.tensor([0.1, 0.15, 0.25, 0.5])
    sampler = Samplers(llama, GenerationConfig(do_sample=True, **settings)).common
    torch.manual_seed(0)
    drawn = sampler.choose(weights.log().expand(20000, 4), 0)
    temperature = settings.get("temperature", 1.0)
    wanted = weights ** (1 / temperature)
    wanted[[token for token in range(4) if token not in allowed]] = 0
    found = torch.bincount(drawn, minlength=4) / len(drawn)
    torch.testing.assert_close(found, wanted / wanted.sum(), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, errors.SpecError, "pass max_new_tokens"),
        ({"max_new_tokens": 0}, errors.SpecError, "max_new_tokens=0"),
        ({"max_new_tokens": [5, 6]}, errors.SpecError, "2 numbers for 6 prompts"),
        ({"max_new_tokens": 5, "memory": None}, errors.ConfigError, "memory such as"),
        ({"max_new_tokens": 5, "max_batch": 0}, errors.SpecError, "max_batch=0"),
        ({"max_new_tokens": 5, "graphs": True}, errors.UnsupportedError, "graphs=True"),
        ({"max_new_tokens": 5, "page_size": "3K"}, errors.ConfigError, "3K"),
    ],
)
def test_what_cannot_be(batch, options, error, message):
    with pytest.raises(error, match=message):
        batch(random_prompts(LENGTHS), **options)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("prompts", [None, 2.5, b"text", [1, 2], torch.zeros(2, 2)]),
        ("max_new_tokens", [2.5, "5", [5.5], object(), 2**64, torch.zeros(1, 2)]),
        ("max_batch", [None, "3", 2.5, torch.zeros(2)]),
        ("max_prefill_tokens", [None, "3", 2.5, torch.zeros(2)]),
        ("generation_config", [2.5, "greedy", {}, [3]]),
    ],
)
def test_what_is_of_no_type_that_the_call_takes(batch, name, values):
    for value in values:
        options = {"prompts": [[1, 2]], "max_new_tokens": 2, name: value}
        with pytest.raises(errors.Error, match=f"{name}|prompt|max_tokens") as caught:
            batch(**options)
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("model", [None, "gpt2", {}])
def test_what_is_no_model(model):
    with pytest.raises(errors.ArgumentError, match="pass a model of transformers"):
        generate_batch(model, [[1]], max_new_tokens=1, memory="1MiB")
    with pytest.raises(errors.ArgumentError, match="pass a model of transformers"):
        VAttentionCache.for_model(model, max_batch=1, max_tokens=8, memory="1MiB")


def test_an_empty_prompt(batch):
    with pytest.raises(errors.SpecError, match="prompt of 0 tokens"):
        batch([[5], []], max_new_tokens=5)


@pytest.mark.parametrize(
    "setting",
    [{"num_beams": 4}, {"penalty_alpha": 0.6}, {"stop_strings": ["a"]}, {"guidance_scale": 2.0}],
)
def test_settings_that_would_be_passed_over_are_refused_by_name(batch, setting):
    config = GenerationConfig(max_new_tokens=5, **setting)
    with pytest.raises(errors.UnsupportedError, match=next(iter(setting))):
        batch(random_prompts(LENGTHS), generation_config=config)


def test_settings_that_change_nothing_are_taken(llama, batch):
    config = GenerationConfig(
        max_new_tokens=5, num_beams=1, repetition_penalty=1.0, do_sample=False, top_p=1.0
    )
    (request,) = batch([[5, 6, 7]], generation_config=config)
    assert request.output == expected_output(llama, [5, 6, 7], 5)


def test_a_cache_and_memory_for_another(llama, kv):
    with pytest.raises(errors.ConfigError, match="memory, layout can change nothing"):
        generate_batch(llama, [[5]], max_new_tokens=5, cache=kv, memory="1MiB", layout="token")


def test_a_prompt_too_long_for_the_cache_runs_nothing(llama, kv):
    with pytest.raises(errors.LengthError, match="100 tokens and 30 new"):
        generate_batch(llama, [[5], [5] * 100], max_new_tokens=30, cache=kv)
    assert kv.stats().slots_live == 0


def test_more_than_the_memory_holds_is_an_error_that_says_so(batch):
    with pytest.raises(errors.OutOfMemory, match="600 tokens"):
        batch([[5] * 600], max_new_tokens=5, memory="64KiB", page_size="64K", layout="token")


def test_no_release_of_the_library_warns_about_how_it_is_called(batch):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batch([[5, 6, 7]], max_new_tokens=3)
