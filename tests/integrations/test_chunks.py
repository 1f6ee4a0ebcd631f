# SPDX-License-Identifier: Apache-2.0
"""Attention within chunks: token for token what the library generates, past two chunks."""

from __future__ import annotations

import pytest
from tiny_models import (
    VOCABULARY,
    assert_same,
    generate,
    left_padded,
    random_prompts,
    reference,
    torch,
    transformers,
)

from pyvattn import errors
from pyvattn.integrations.transformers import VAttentionCache, generate_batch

CHUNK, NEW = 16, 24
PROMPTS = random_prompts((3, 19, 16, 40))
ROOM = {"max_batch": 4, "max_tokens": 256, "memory": "64MiB", "strict": True}


def tiny(**changes):
    options = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 96,
        "intermediate_size_mlp": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": None,
        "attention_chunk_size": CHUNK,
        "layer_types": ["chunked_attention", "full_attention"] * 2,
    }
    torch.manual_seed(1)
    config = transformers.Llama4TextConfig(**{**options, **changes})
    return transformers.Llama4ForCausalLM(config).eval()


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture(scope="module")
def expected(model):
    return reference(model, left_padded(PROMPTS), max_new_tokens=NEW)


@pytest.mark.parametrize("options", [{}, {"prefill_chunk_size": 7}])
def test_tokens_are_the_librarys(model, expected, options):
    with VAttentionCache.for_model(model, **ROOM) as cache:
        assert sorted(cache.kv.spec.windows, key=str) == [CHUNK, None]
        result = generate(model, left_padded(PROMPTS), cache, max_new_tokens=NEW, **options)
        assert_same(result, expected)


@pytest.mark.parametrize(("max_batch", "max_prefill_tokens"), [(2, 7), (3, 20), (4, 8192)])
def test_continuous_batching(model, expected, max_batch, max_prefill_tokens):
    options = {"max_batch": max_batch, "max_prefill_tokens": max_prefill_tokens, "strict": True}
    requests = generate_batch(model, PROMPTS, max_new_tokens=NEW, memory="64MiB", **options)
    assert [request.output for request in requests] == expected.sequences[:, -NEW:].tolist()


def test_beams_are_the_librarys(model):
    inputs, options = left_padded(PROMPTS[:2]), {"num_beams": 2, "max_new_tokens": 20}
    expected = reference(model, inputs, **options).sequences
    with VAttentionCache.for_model(model, **ROOM) as cache:
        assert torch.equal(generate(model, inputs, cache, **options).sequences, expected)


@torch.no_grad()
def test_what_cannot_be_is_refused(model):
    padded = torch.ones(1, 20, dtype=torch.long)
    padded[0, 15:18] = 0
    with VAttentionCache.for_model(model, **ROOM) as cache:
        with pytest.raises(errors.UnsupportedError, match="pad on the left"):
            model(torch.full((1, 20), 9), attention_mask=padded, past_key_values=cache)
        cache.reset()
        model(torch.full((1, 20), 9), past_key_values=cache)
        with pytest.raises(errors.UnsupportedError, match="before the window of 16"):
            cache.crop(-1)
    scaled = tiny(floor_scale=32)
    with pytest.raises(errors.UnsupportedError, match="max_tokens=31 at most"):
        generate_batch(scaled, PROMPTS, max_new_tokens=NEW, memory="64MiB")
