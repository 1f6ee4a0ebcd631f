# SPDX-License-Identifier: Apache-2.0
"""Generation options of each request, against model.generate with the same ones."""

from __future__ import annotations

import pytest
from test_engine import expected_output, open_kv
from tiny_models import random_prompts, torch
from transformers import GenerationConfig

from pyvattn import errors
from pyvattn.integrations.transformers import Engine, generate_batch

END = 11
OPTIONS = [
    {},
    {"repetition_penalty": 1.7},
    {"no_repeat_ngram_size": 2},
    {"bad_words_ids": [[7, 8], [9]]},
    {"sequence_bias": [[[5, 6], 4.0], [[3], 6.0]]},
    {"min_new_tokens": 12, "eos_token_id": END},
    {"min_length": 20, "eos_token_id": [END, 4]},
    {"forced_eos_token_id": END, "eos_token_id": END},
    {"suppress_tokens": [5, 9, 33], "begin_suppress_tokens": [7]},
    {"exponential_decay_length_penalty": (3, 1.5), "eos_token_id": END},
    {"cache_implementation": None, "renormalize_logits": True, "remove_invalid_values": True},
]
LENGTHS = (3, 17, 9, 40, 1, 25, 6, 12, 8, 5, 30)


@pytest.mark.parametrize("lookahead", [False, True])
def test_requests_side_by_side_get_the_tokens_they_get_alone(llama, lookahead):
    options = {"lookahead": lookahead, "max_prefill_tokens": 16}
    with open_kv(llama, slots=4) as kv, Engine(llama, kv, **options) as engine:
        pairs = zip(random_prompts(LENGTHS), OPTIONS, strict=True)
        requests = [engine.submit(prompt, 16, **options) for prompt, options in pairs]
        engine.run()
    plain = 0
    for request, options in zip(requests, OPTIONS, strict=True):
        assert request.output == expected_output(llama, request.prompt, 16, **options), options
        plain += request.output == expected_output(llama, request.prompt, 16)
    assert plain <= len(OPTIONS) // 2, "most options must change something"


def test_an_option_is_laid_over_the_config_of_the_engine(llama, kv, prompts):
    config = GenerationConfig(repetition_penalty=1.7, no_repeat_ngram_size=2)
    with Engine(llama, kv, generation_config=config) as engine:
        both = engine.submit(prompts[0], 20)
        one = engine.submit(prompts[0], 20, repetition_penalty=1.0)
        other = engine.submit(prompts[0], 20, GenerationConfig(repetition_penalty=1.3))
        engine.run()
    repeat = {"repetition_penalty": 1.7}
    ngram = {"no_repeat_ngram_size": 2}
    assert both.output == expected_output(llama, prompts[0], 20, **repeat, **ngram)
    assert one.output == expected_output(llama, prompts[0], 20, **ngram)
    assert other.output == expected_output(llama, prompts[0], 20, repetition_penalty=1.3)
    assert config.repetition_penalty == 1.7


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.3, "top_k": 0},
        {"top_k": 5},
        {"top_k": 0, "top_p": 0.8},
        {"top_k": 0, "min_p": 0.1},
        {"top_k": 0, "typical_p": 0.7},
        {"top_k": 0, "eta_cutoff": 0.02},
        {"top_k": 0, "epsilon_cutoff": 0.02},
        {"top_k": 0, "top_h": 0.5},
        {"top_k": 20, "temperature": 0.9, "repetition_penalty": 1.3},
    ],
)
def test_what_is_drawn_is_what_generate_draws(llama, kv, prompts, options):
    torch.manual_seed(7)
    expected = expected_output(llama, prompts[1], 20, do_sample=True, **options)
    for of_engine in (True, False):
        config = GenerationConfig(do_sample=True, **options) if of_engine else None
        with Engine(llama, kv, generation_config=config) as engine:
            torch.manual_seed(7)
            own = {} if of_engine else {"do_sample": True, **options}
            request = engine.submit(prompts[1], 20, **own)
            engine.run()
        assert request.output == expected


def test_some_draw_and_others_do_not(llama, prompts):
    with open_kv(llama, slots=4) as kv, Engine(llama, kv) as engine:
        options = [{}, {"do_sample": True, "temperature": 2.0}] * 2
        requests = [engine.submit(p, 20, **o) for p, o in zip(prompts, options, strict=True)]
        assert requests[0].sampler is None
        assert requests[1].sampler is requests[3].sampler, "one for all who ask for the same"
        engine.run()
    same = [each.output == expected_output(llama, each.prompt, 20) for each in requests]
    assert same == [True, False, True, False]


def test_a_request_that_starts_over_remembers_what_it_said(llama):
    tight = {"page_size": "64K", "layout": "token", "max_tokens": 1024, "memory": 5 * (64 << 10)}
    with open_kv(llama, slots=4, **tight) as kv, Engine(llama, kv, lookahead=True) as engine:
        prompts = random_prompts([160, 155, 150, 145])
        requests = [engine.submit(prompt, 30, repetition_penalty=1.4) for prompt in prompts]
        preempted = set()
        while engine.busy:
            engine.step()
            preempted |= {each for each in engine.waiting if each.output}
    assert preempted
    for request in requests:
        expected = expected_output(llama, request.prompt, 30, repetition_penalty=1.4)
        assert request.output == expected


def test_generate_batch_takes_what_instruct_models_ship(llama, prompts):
    config = GenerationConfig(
        max_new_tokens=16, repetition_penalty=1.5, cache_implementation="static", use_cache=True
    )
    requests = generate_batch(llama, prompts, generation_config=config, memory="64MiB")
    for request in requests:
        assert request.output == expected_output(llama, request.prompt, 16, repetition_penalty=1.5)


def test_generate_batch_takes_a_config_for_each_prompt(llama, prompts):
    configs = [
        GenerationConfig(max_new_tokens=new, repetition_penalty=penalty)
        for new, penalty in ((5, 1.0), (9, 1.3), (12, 1.6), (7, 1.9))
    ]
    requests = generate_batch(llama, prompts, generation_config=configs, memory="64MiB")
    for request, config in zip(requests, configs, strict=True):
        assert len(request.output) == config.max_new_tokens
        expected = expected_output(
            llama,
            request.prompt,
            config.max_new_tokens,
            repetition_penalty=config.repetition_penalty,
        )
        assert request.output == expected
    with pytest.raises(errors.SpecError, match="2 generation configs for 4 prompts"):
        generate_batch(llama, prompts, generation_config=configs[:2], memory="64MiB")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"temprature": 0.7}, errors.SpecError, "no generation option is called temprature"),
        ({"num_beams": 3}, errors.UnsupportedError, "num_beams=3"),
        ({"repetition_penalty": -1.0}, errors.SpecError, "transformers rejects"),
        ({"temperature": 0.0, "do_sample": True}, errors.SpecError, "transformers rejects"),
        ({"exponential_decay_length_penalty": (3, 1.5)}, errors.SpecError, "transformers rejects"),
    ],
)
def test_options_that_cannot_be(llama, kv, prompts, options, error, message):
    with Engine(llama, kv) as engine:
        with pytest.raises(error, match=message):
            engine.submit(prompts[0], 5, **options)
        assert not engine.busy
