# SPDX-License-Identifier: Apache-2.0
"""The model attends as before once nothing of pyvattn holds it."""

from __future__ import annotations

import gc

import pytest
from test_engine import open_kv
from tiny_models import left_padded, make_llama, reference, torch, transformers

from pyvattn import errors
from pyvattn.integrations.transformers import Engine, VAttentionCache, generate_batch

ROOM = {"max_batch": 4, "max_tokens": 128, "memory": "64MiB"}


@pytest.fixture(params=["eager", "sdpa"])
def before(request, llama):
    llama.set_attn_implementation(request.param)
    return request.param


def attention_of(model):
    return model.config._attn_implementation


def test_after_generate_batch(llama, prompts, before):
    generate_batch(llama, prompts, max_new_tokens=3, memory="64MiB")
    assert attention_of(llama) == before


def test_attention_weights_come_back_after_generate_batch(llama, prompts):
    llama.set_attn_implementation("eager")
    generate_batch(llama, prompts, max_new_tokens=3, memory="64MiB")
    ids = torch.tensor([prompts[0]])
    assert len(llama(ids, output_attentions=True).attentions) == 3


@pytest.mark.parametrize("failing", ["submit", "forward"])
def test_after_an_exception(llama, prompts, before, monkeypatch, failing):
    def fail(*_, **__):
        raise ZeroDivisionError

    if failing == "forward":
        monkeypatch.setattr(llama.model.layers[1].mlp, "forward", fail)
    else:
        prompts = [*prompts, [-1]]
    with pytest.raises((ZeroDivisionError, errors.SpecError)):
        generate_batch(llama, prompts, max_new_tokens=3, memory="64MiB")
    assert attention_of(llama) == before


def test_an_engine_that_cannot_be_made(llama, before):
    with open_kv(llama) as kv, pytest.raises(errors.UnsupportedError):
        Engine(llama, kv, generation_config=transformers.GenerationConfig(num_beams=2))
    with pytest.raises(errors.Error):
        VAttentionCache.for_model(llama, **{**ROOM, "memory": "1"})
    assert attention_of(llama) == before


def test_the_last_of_several_leaves_the_model_as_the_first_found_it(llama, prompts, before):
    inputs = left_padded(prompts)
    expected = reference(llama, inputs).sequences
    first = VAttentionCache.for_model(llama, **ROOM)
    with open_kv(llama) as kv:
        second = Engine(llama, kv)
        first.close()
        first.close()
        assert attention_of(llama) == "pyvattn"
        third = VAttentionCache.for_model(llama, **ROOM)
        second.close()
    options = {"max_new_tokens": 24, "do_sample": False}
    assert torch.equal(llama.generate(**inputs, past_key_values=third, **options), expected)
    third.close()
    assert attention_of(llama) == before


def test_what_is_dropped_lets_go(llama, before):
    cache = VAttentionCache.for_model(llama, **ROOM)
    assert attention_of(llama) == "pyvattn"
    with cache.kv:
        del cache
        gc.collect()
        assert attention_of(llama) == before


def test_what_the_caller_sets_meanwhile_stays(llama):
    with VAttentionCache.for_model(llama, **ROOM):
        llama.set_attn_implementation("eager")
    assert attention_of(llama) == "eager"


def test_configs_beneath_get_back_their_own():
    text = {
        "vocab_size": 97,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "eos_token_id": None,
    }
    vision = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = transformers.LlavaConfig(
        text_config={"model_type": "llama", **text},
        vision_config={"model_type": "clip_vision_model", **vision},
        image_token_id=96,
    )
    model = transformers.LlavaForConditionalGeneration(config).eval()
    model.set_attn_implementation({"text_config": "eager", "vision_config": "sdpa"})
    before = [attention_of(model), config.text_config._attn_implementation]
    generate_batch(model, [[5, 6, 7]], max_new_tokens=3, memory="64MiB")
    assert [attention_of(model), config.text_config._attn_implementation] == before
    assert config.vision_config._attn_implementation == "sdpa"


def test_models_made_alike_are_apart(llama, prompts):
    other = make_llama()
    with VAttentionCache.for_model(llama, **ROOM):
        assert attention_of(other) == "sdpa"
