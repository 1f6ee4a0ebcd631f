# SPDX-License-Identifier: Apache-2.0
"""Layers that read another's K and V, of several shapes, and latent vectors: token for token."""

from __future__ import annotations

import pytest
from tiny_models import (
    VOCABULARY,
    assert_same,
    dynamic,
    generate,
    left_padded,
    random_prompts,
    reference,
    torch,
    transformers,
)

from pyvattn import CacheSpec, KVCache, SpecError, UnsupportedError
from pyvattn.integrations.transformers import Engine, VAttentionCache, generate_batch, spec_for

ROOM = {"max_batch": 4, "max_tokens": 256, "memory": "64MiB", "strict": True}
WINDOW = 8
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
MIXED = ["sliding_attention", "full_attention"]
SHARING = {
    **SMALL,
    "num_hidden_layers": 8,
    "num_key_value_heads": 2,
    "layer_types": MIXED * 4,
    "sliding_window": WINDOW,
    "num_kv_shared_layers": 4,
    "head_dim": 16,
    "hidden_size_per_layer_input": 16,
    "vocab_size_per_layer_input": VOCABULARY,
}
LATENT = {
    **SMALL,
    "num_key_value_heads": 4,
    "kv_lora_rank": 24,
    "q_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "moe_intermediate_size": 32,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 2,
}
MODELS = {
    "Gemma3n": ("Gemma3nText", {**SHARING, "laurel_rank": 8, "altup_num_inputs": 2}),
    "Gemma4": ("Gemma4Text", {**SHARING, "global_head_dim": 32}),
    "DeepseekV2": ("DeepseekV2", LATENT),
    "DeepseekV3": ("DeepseekV3", LATENT),
    "Glm4MoeLite": ("Glm4MoeLite", LATENT),
    "MiniCPM3": ("MiniCPM3", LATENT),
}
PROMPTS = random_prompts((3, 19, 9, 40))


def tiny(name):
    family, sizes = MODELS[name]
    config_class = getattr(transformers, f"{family}Config", None)
    if config_class is None:
        pytest.skip(f"this release of transformers has no {family}")
    known = config_class.__dataclass_fields__
    more = {"global_head_dim": sizes["global_head_dim"]} if "global_head_dim" in sizes else {}
    config = config_class(**{field: n for field, n in sizes.items() if field in known}, **more)
    torch.manual_seed(1)
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return tiny(request.param)


@pytest.fixture
def whole(model):
    """Return a model whose layers all attend with every query, as far as the library lets them."""
    if cuts_masks(model):
        pytest.skip("this release of transformers cuts the mask for this model's last layers")
    return model


def cuts_masks(model):
    return hasattr(model.model, "_maybe_slice_kv_shared_inputs")


def test_a_model_that_cuts_its_mask_is_refused_before_the_first_token(model):
    if not cuts_masks(model):
        pytest.skip("this release of transformers cuts no mask for this model")
    with (
        VAttentionCache.for_model(model, **ROOM) as cache,
        pytest.raises(UnsupportedError, match="cuts its mask"),
    ):
        generate(model, left_padded(PROMPTS), cache)


def test_tokens_are_the_librarys(whole):
    model = whole
    inputs = left_padded(PROMPTS)
    expected = reference(model, inputs)
    with VAttentionCache.for_model(model, **ROOM) as cache:
        assert_same(generate(model, inputs, cache), expected)


def test_a_prompt_in_chunks(whole):
    model = whole
    prompt = torch.tensor([random_prompts((50,))[0]])
    with torch.no_grad():
        expected = model(prompt, past_key_values=dynamic(model)).logits
        with VAttentionCache.for_model(model, **ROOM) as cache:
            parts = [model(part, past_key_values=cache).logits for part in prompt.split(7, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, atol=1e-4, rtol=0)


def test_beams_are_the_librarys(whole):
    model = whole
    inputs = left_padded(PROMPTS[:2])
    options = {"num_beams": 2, "max_new_tokens": 12}
    expected = reference(model, inputs, **options).sequences
    with VAttentionCache.for_model(model, **ROOM) as cache:
        assert torch.equal(generate(model, inputs, cache, **options).sequences, expected)


def test_continuous_batching(model):
    prompts = random_prompts((3, 19, 9, 40, 25, 11))
    alone = [
        reference(model, {"input_ids": torch.tensor([prompt])}, max_new_tokens=12).sequences[0]
        for prompt in prompts
    ]
    options = {"memory": "64MiB", "max_batch": 3, "max_prefill_tokens": 16}
    results = generate_batch(model, prompts, max_new_tokens=12, **options)
    for prompt, result, expected in zip(prompts, results, alone, strict=True):
        assert [*prompt, *result.output] == expected.tolist()


def test_the_cache_holds_what_the_library_holds(whole):
    model = whole
    prompt = torch.tensor([PROMPTS[3]])
    with torch.no_grad(), VAttentionCache.for_model(model, **ROOM) as cache:
        theirs = model(prompt, past_key_values=dynamic(model)).past_key_values
        model(prompt, past_key_values=cache)
        # Newer releases also list the layers that read another's, which hold nothing.
        holding = [layer for layer in theirs.layers if layer.keys is not None]
        assert len(cache) == len(holding)
        for layer, kept in enumerate(holding):
            if cache.kv.spec.window_of(layer) is None:
                k, v = cache.read_layer(layer)
                torch.testing.assert_close((k, v), (kept.keys, kept.values), atol=1e-5, rtol=0)
        held = sum(t[..., :1, :].numel() for one in holding for t in (one.keys, one.values))
        assert cache.kv.spec.token_bytes == held * 4


def test_an_engine_wants_a_cache_with_the_same_sharing():
    model = tiny("Gemma4")
    spec = spec_for(model, max_slots=2, max_tokens=64)
    assert spec.shared == {4: 2, 5: 3, 6: 2, 7: 3}
    groups = spec.groups
    other = CacheSpec(
        groups=groups, shared={4: 0, 5: 3, 6: 2, 7: 3}, dtype="float32", max_slots=2, max_tokens=64
    )
    with (
        KVCache(other, device="cpu", memory="64MiB") as kv,
        pytest.raises(SpecError, match="shared"),
    ):
        Engine(model, kv)
