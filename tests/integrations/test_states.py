# SPDX-License-Identifier: Apache-2.0
"""Models with states beside attention: token for token what the library generates."""

from __future__ import annotations

import copy

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

from pyvattn import errors
from pyvattn.integrations.transformers import VAttentionCache, generate_batch

ROOM = {"max_batch": 4, "max_tokens": 256, "memory": "64MiB", "strict": True}
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}
GATED_DELTA = {
    **SMALL,
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
}
MAMBA = {
    **SMALL,
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_chunk_size": 16,
}
MODELS = {
    "Qwen3Next": ("Qwen3Next", GATED_DELTA),
    "Qwen3_5": ("Qwen3_5Text", GATED_DELTA),
    "Lfm2": (
        "Lfm2",
        {**SMALL, "layer_types": ["conv", "full_attention"] * 2, "conv_L_cache": 3},
    ),
    "Bamba": ("Bamba", {**MAMBA, "attn_layer_indices": [1, 3]}),
    "NemotronH": (
        "NemotronH",
        {
            **SMALL,
            "layers_block_type": ["mamba", "attention"] * 2,
            "mamba_num_heads": 8,
            "mamba_head_dim": 16,
            "ssm_state_size": 8,
            "n_groups": 1,
            "conv_kernel": 4,
            "chunk_size": 16,
        },
    ),
    "GraniteMoeHybrid": (
        "GraniteMoeHybrid",
        {
            **MAMBA,
            "layer_types": ["mamba", "attention"] * 2,
            "num_local_experts": 4,
            "shared_intermediate_size": 32,
        },
    ),
}
# Every layer of these keeps K, V and a state, or some do.
MODELS |= {
    "FalconH1": ("FalconH1", {**MAMBA, "mamba_d_ssm": 128}),
    "Zamba2": (
        "Zamba2",
        {
            **SMALL,
            "num_key_value_heads": 4,
            "layers_block_type": ["linear_attention", "hybrid"] * 2,
            "n_mamba_heads": 8,
            "mamba_headdim": 16,
            "mamba_d_state": 16,
            "mamba_ngroups": 1,
            "num_mem_blocks": 1,
            "use_shared_attention_adapter": True,
            "adapter_rank": 8,
            "chunk_size": 16,
        },
    ),
}
ZAYA = {
    **SMALL,
    "layer_types": ["hybrid_sliding", "hybrid"] * 2,
    "sliding_window": 8,
    "num_experts_per_tok": 1,
    "router_hidden_size": 16,
}
JAMBA = {
    **MAMBA,
    "mamba_dt_rank": 4,
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "expert_layer_period": 2,
    "expert_layer_offset": 1,
    "use_mamba_kernels": False,
}
PROMPTS = random_prompts((3, 19, 9, 40))


def tiny(name):
    return tiny_of(name, *MODELS[name])


def tiny_of(name, family, sizes):
    config_class = getattr(transformers, f"{family}Config", None)
    if config_class is None:
        pytest.skip(f"this release of transformers has no {family}")
    names = {*config_class.__dataclass_fields__, "attn_layer_indices"}
    config = config_class(**{field: n for field, n in sizes.items() if field in names})
    torch.manual_seed(1)
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return tiny(request.param)


def test_tokens_are_the_librarys(model):
    inputs = left_padded(PROMPTS)
    expected = reference(model, inputs)
    with VAttentionCache.for_model(model, **ROOM) as cache:
        assert_same(generate(model, inputs, cache), expected)
        assert cache.kv.spec.kept_layers == (4 if model.config.model_type == "falcon_h1" else 2)
        cache.reset()
        alone = {"input_ids": torch.tensor(PROMPTS[1:2])}
        assert_same(generate(model, alone, cache), reference(model, alone))


def test_beams_are_the_librarys(model):
    inputs = left_padded(PROMPTS[:2])
    options = {"num_beams": 2, "max_new_tokens": 12}
    expected = reference(model, inputs, **options).sequences
    with VAttentionCache.for_model(model, **ROOM) as cache:
        assert torch.equal(generate(model, inputs, cache, **options).sequences, expected)


@torch.no_grad()
def test_a_saved_prompt_goes_on_twice(model):
    prompt, turns = torch.tensor([PROMPTS[3]]), [torch.tensor([[one]]) for one in (5, 9)]
    with VAttentionCache.for_model(model, **ROOM) as saved:
        model(prompt, past_key_values=saved)
        theirs = model(prompt, past_key_values=dynamic(model)).past_key_values
        for turn in turns:
            ours = model(turn, past_key_values=copy.deepcopy(saved)).logits
            wanted = model(turn, past_key_values=copy.deepcopy(theirs)).logits
            torch.testing.assert_close(ours, wanted, atol=1e-4, rtol=0)


@torch.no_grad()
def test_states_do_not_go_back(model, monkeypatch):
    prompt = torch.tensor([PROMPTS[1]])
    with VAttentionCache.for_model(model, **ROOM) as cache:
        model(prompt, past_key_values=cache)
        cache.crop(cache.get_seq_length())
        with pytest.raises(errors.UnsupportedError, match=r"crop\(\) needs states"):
            cache.crop(-1)
        with monkeypatch.context() as patched:
            patched.setattr(model.model.layers[2], "forward", lambda *_, **__: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                model(torch.tensor([[9]]), past_key_values=cache)
        with pytest.raises(errors.UnsupportedError, match="failed halfway needs states"):
            model(torch.tensor([[9]]), past_key_values=cache)
        cache.reset()
        ours = model(prompt, past_key_values=cache).logits
    theirs = model(prompt, past_key_values=dynamic(model)).logits
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@torch.no_grad()
def test_layers_with_a_window_and_a_state():
    model, inputs = tiny_of("Zaya", "Zaya", ZAYA), left_padded(PROMPTS)
    expected = reference(model, inputs)
    with VAttentionCache.for_model(model, **ROOM) as cache:
        assert cache.kv.spec.windows == (8, None)
        assert_same(generate(model, inputs, cache), expected)
        cache.reset()
        model(torch.tensor(PROMPTS[1:2]), past_key_values=cache)
        # A pass has a mask for each kind of layer, not taken for a pass after a failed one.
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(model.model.layers[2], "forward", lambda *_, **__: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                model(torch.tensor([[9]]), past_key_values=cache)
        for tokens in ([[9]], [[9, 5]]):
            with pytest.raises(errors.UnsupportedError, match="failed halfway needs states"):
                model(torch.tensor(tokens), past_key_values=cache)
    requests = generate_batch(
        model, PROMPTS, max_new_tokens=24, memory="64MiB", max_prefill_tokens=7, max_batch=3
    )
    assert [request.output for request in requests] == expected.sequences[:, -24:].tolist()
