# SPDX-License-Identifier: Apache-2.0
"""Models that attend in ways of their own: they work, or are refused by name."""

from __future__ import annotations

import pytest
from tiny_models import (
    VOCABULARY,
    assert_same,
    generate,
    left_padded,
    make_llama,
    reference,
    torch,
    transformers,
)

from pyvattn import CacheSpec, KVCache, LayerGroup, errors
from pyvattn.integrations.transformers import VAttentionCache, spec_for

SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
GROUPED = {"num_key_value_heads": 2, "intermediate_size": 96}
ROOM = {"max_batch": 4, "max_tokens": 128, "memory": "64MiB"}


def make(family, **changes):
    torch.manual_seed(1)
    config = getattr(transformers, f"{family}Config")(**{**SMALL, **changes})
    return getattr(transformers, f"{family}ForCausalLM")(config).eval()


CHANGE_AFTERWARDS = {
    "JetMoe": {
        "num_key_value_heads": 2,
        "kv_channels": 16,
        "intermediate_size": 96,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    "DiffLlama": GROUPED,
}


@pytest.mark.parametrize("family", CHANGE_AFTERWARDS)
def test_models_that_change_what_was_cached_are_refused(family, prompts):
    model = make(family, **CHANGE_AFTERWARDS[family])
    # JetMoe's config says how many heads it caches in a way of its own.
    spec = spec_for(make_llama(**{**SMALL, **GROUPED}), max_slots=4, max_tokens=128)
    model.set_attn_implementation("pyvattn")
    with (
        KVCache(spec, device="cpu", memory="64MiB") as kv,
        pytest.raises(errors.UnsupportedError, match=rf"{family}\w* changes keys or values"),
    ):
        generate(model, left_padded(prompts), VAttentionCache(kv))


def test_a_second_attention_in_a_layer_is_refused(llama, prompts, monkeypatch):
    """As in DiffLlama, but with K and V as they are."""
    attention = transformers.AttentionInterface()["pyvattn"]

    def twice(*args, **kwargs):
        attention(*args, **kwargs)
        return attention(*args, **kwargs)

    with VAttentionCache.for_model(llama, **ROOM) as cache:
        monkeypatch.setitem(transformers.AttentionInterface._global_mapping, "pyvattn", twice)
        with pytest.raises(errors.UnsupportedError, match=r"LlamaAttention .* more than once"):
            generate(llama, left_padded(prompts), cache)


def make_cohere2(kinds):
    return make("Cohere2", **GROUPED, sliding_window=8, layer_types=kinds)


def test_a_sliding_mask_that_no_layer_uses_does_not_matter(prompts):
    model = make_cohere2(["full_attention"] * 2)
    inputs = left_padded(prompts)
    expected = reference(model, inputs)
    with VAttentionCache.for_model(model, **ROOM) as cache:
        assert_same(generate(model, inputs, cache), expected)


def cache_of(**groups):
    """A cache for the tiny models above whose two layers are as given."""
    shape = {"kv_heads": 2, "head_dim": 16}
    spec = CacheSpec(
        groups=[LayerGroup(layers, **shape, window=window) for layers, window in groups.values()],
        dtype="float32",
        max_slots=4,
        max_tokens=128,
        guard_tokens=0,
    )
    return KVCache(spec, device="cpu", memory="64MiB")


@pytest.mark.parametrize("first", ["full_attention", "sliding_attention"])
def test_a_cache_that_keeps_more_than_a_window_serves_as_well(prompts, first):
    kinds = ["full_attention", "sliding_attention"]
    model = make_cohere2(kinds if first == kinds[0] else kinds[::-1])
    inputs = left_padded(prompts)
    expected = reference(model, inputs)
    model.set_attn_implementation("pyvattn")
    with cache_of(all=([0, 1], 20)) as kv, pytest.raises(errors.UnsupportedError, match="all"):
        generate(model, inputs, VAttentionCache(kv))
    spec = spec_for(make_cohere2(["full_attention"] * 2), max_slots=4, max_tokens=128)
    with KVCache(spec, device="cpu", memory="64MiB") as kv:
        assert_same(generate(model, inputs, VAttentionCache(kv)), expected)


def test_a_cache_that_keeps_less_than_a_window_is_refused(prompts):
    model = make("Mistral", **GROUPED, sliding_window=8)
    model.set_attn_implementation("pyvattn")
    with (
        cache_of(all=([0, 1], 7)) as kv,
        pytest.raises(errors.UnsupportedError, match="attends to 8 tokens, and the cache keeps 7"),
    ):
        generate(model, left_padded(prompts), VAttentionCache(kv))


def test_masks_are_windows_or_refused():
    from transformers import masking_utils as masks

    from pyvattn.integrations.transformers.masks import mask_window

    assert mask_window(masks.causal_mask_function, None) == 0
    sliding = masks.sliding_window_causal_mask_function(8)
    assert mask_window(sliding, 8) == 8
    for other in (9, None, 0, "8"):
        assert mask_window(sliding, other) is None
    chunks = masks.chunked_causal_mask_function(8, torch.zeros(1, dtype=torch.int))
    both = masks.or_masks(sliding, masks.causal_mask_function)
    narrower = masks.and_masks(sliding, masks.causal_mask_function)
    for function in (chunks, both, narrower, masks.bidirectional_mask_function):
        assert mask_window(function, 8) is None
