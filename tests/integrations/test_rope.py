# SPDX-License-Identifier: Apache-2.0
"""Rotary frequencies that change with length: the tokens of a row alone, or a refusal."""

from __future__ import annotations

import pytest
from tiny_models import (
    assert_same,
    generate,
    left_padded,
    make_llama,
    random_prompts,
    reference,
    torch,
    transformers,
)

from pyvattn import errors
from pyvattn.integrations.transformers import VAttentionCache, generate_batch, spec_for

ORIGINAL = 32


def make_phi3():
    """A Phi-3 whose short frequencies hold up to 32 tokens."""
    torch.manual_seed(1)
    config = transformers.Phi3Config(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        original_max_position_embeddings=ORIGINAL,
        initializer_range=0.2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=None,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0] * 8,
            "long_factor": [4.0] * 8,
        },
    )
    return transformers.Phi3ForCausalLM(config).eval()


def make_ntk():
    """A Llama with dynamic NTK scaling past 32 tokens."""
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    return make_llama(max_position_embeddings=ORIGINAL, rope_parameters=rope)


@pytest.fixture(params=[make_phi3, make_ntk])
def model(request):
    return request.param()


def test_a_batch_that_would_pass_the_original_length_is_refused(model):
    with pytest.raises(errors.UnsupportedError, match=r"past 32 tokens.*max_tokens=32 at most"):
        generate_batch(model, random_prompts((8, 60)), max_new_tokens=8, memory="64MiB")


def test_a_cache_that_could_pass_the_original_length_is_refused(model):
    with pytest.raises(errors.UnsupportedError, match="max_tokens=33"):
        VAttentionCache.for_model(model, max_batch=2, max_tokens=ORIGINAL + 1, memory="64MiB")


def test_within_the_original_length_rows_are_what_they_are_alone(model):
    prompts = random_prompts((8, 25))
    alone = [
        reference(model, left_padded([each]), max_new_tokens=7).sequences[0, len(each) :].tolist()
        for each in prompts
    ]
    requests = generate_batch(
        model, prompts, max_new_tokens=7, memory="64MiB", max_prefill_tokens=11
    )
    assert [request.output for request in requests] == alone


def test_generate_within_the_original_length(model):
    inputs = left_padded(random_prompts((8, 20)))
    expected = reference(model, inputs, max_new_tokens=12)
    options = {"max_batch": 2, "max_tokens": ORIGINAL, "memory": "64MiB"}
    with VAttentionCache.for_model(model, **options) as cache:
        assert_same(generate(model, inputs, cache, max_new_tokens=12), expected)


@pytest.mark.parametrize("kind", ["linear", "llama3", "yarn"])
def test_frequencies_that_stay_are_not_refused(kind):
    rope = {
        "rope_type": kind,
        "rope_theta": 10000.0,
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": ORIGINAL,
    }
    spec = spec_for(make_llama(rope_parameters=rope), max_slots=1, max_tokens=100)
    assert spec.max_tokens == 100


def test_the_frequencies_of_one_kind_of_layer_are_enough_to_refuse(model):
    one = dict(model.config.rope_parameters)
    model.config.rope_parameters = {"sliding_attention": {"rope_type": "default"}, "full": one}
    with pytest.raises(errors.UnsupportedError, match="past 32 tokens"):
        spec_for(model, max_slots=1, max_tokens=100)


def test_the_step_of_such_a_model_is_not_captured(model):
    from types import SimpleNamespace

    from pyvattn.integrations.transformers.graphs import why_no_graphs

    kind = model.config.rope_parameters["rope_type"]
    on_cuda = SimpleNamespace(device=torch.device("cuda"), config=model.config)
    cache = SimpleNamespace(spec=SimpleNamespace(max_slots=2))
    assert f"rope_type='{kind}'" in why_no_graphs(on_cuda, cache)
