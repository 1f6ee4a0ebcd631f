# SPDX-License-Identifier: Apache-2.0
"""Configs of real families: what their layers keep, or a refusal that names why."""

import json

import pytest
from click.testing import CliRunner
from hub_configs import (
    BAMBA_9B,
    CHATGLM,
    DBRX,
    FALCON_H1,
    GEMMA_3_12B,
    GEMMA_4,
    HUNYUAN,
    JAMBA,
    KIMI_LINEAR,
    LFM2,
    MIMO_V2_FLASH,
    MINIMAX_01,
    MLLAMA,
    MPT,
    NEMOTRON_H_8B,
    NEMOTRON_NAS,
    QWEN2_VL_7B,
    QWEN3_NEXT,
    RECURRENT_GEMMA,
    STEP_3,
    ZAMBA2,
)

from pyvattn import CacheSpec, SpecError
from pyvattn.cli.app import cli
from pyvattn.configs import remarks, supported

FIGURES = {
    "Qwen3-Next-80B-A3B": (QWEN3_NEXT, 12, 24576),
    "Nemotron-H-8B": (NEMOTRON_H_8B, 4, 16384),
    "DBRX": (DBRX, 40, 163840),
    "MPT, one KV head": (MPT, 32, 16384),
    "MPT, as many": ({**MPT, "attn_config": {"attn_type": "multihead_attention"}}, 32, 524288),
    "Step-3": (STEP_3, 61, 62464),
    "Nemotron-NAS": (NEMOTRON_NAS, 2, 8192),
    "Bamba-9B": (BAMBA_9B, 3, 12288),
    "MiniMax-01": (MINIMAX_01, 10, 40960),
    "Kimi-Linear": (KIMI_LINEAR, 2, 2304),
    "LFM2": (LFM2, 6, 12288),
    "RecurrentGemma-2B": (RECURRENT_GEMMA, 8, 8192),
    "Zamba2": (ZAMBA2, 2, 2 * 2 * 32 * 160 * 2),
    "Mllama-11B": (MLLAMA, 32, 131072),
    "Hunyuan-Large": (HUNYUAN, 32, 131072),
    "Hunyuan, CLA off": ({**HUNYUAN, "use_cla": False}, 64, 262144),
    "Gemma-3-12B": (GEMMA_3_12B, 48, 393216),
    "Jamba": (JAMBA, 4, 16384),
    "Falcon-H1-3B": (FALCON_H1, 36, 36864),
    "ChatGLM": (CHATGLM, 28, 28672),
    "Qwen2-VL-7B": (QWEN2_VL_7B, 28, 57344),
    "Qwen2.5-VL-7B": ({**QWEN2_VL_7B, "model_type": "qwen2_5_vl"}, 28, 57344),
}


@pytest.mark.parametrize(("config", "layers", "token_bytes"), FIGURES.values(), ids=FIGURES)
def test_layers_that_attend_and_bytes_a_token(config, layers, token_bytes):
    spec = CacheSpec.from_hf_config(config)
    assert (spec.kept_layers, spec.token_bytes) == (layers, token_bytes)


def test_what_a_nested_config_leaves_out_has_the_default_of_its_class():
    text = {"model_type": "gemma3_text", "hidden_size": 2560, "num_hidden_layers": 34}
    spec = CacheSpec.from_hf_config({"model_type": "gemma3", "text_config": text})
    assert (spec.layers, spec.kv_heads, spec.head_dim) == (34, 4, 256)
    assert spec.max_tokens == 131072


def test_a_part_that_does_not_say_its_type_has_its_familys():
    text = {"hidden_size": 2560, "num_hidden_layers": 34}
    spec = CacheSpec.from_hf_config({"model_type": "gemma3", "text_config": text})
    assert (spec.layers, spec.kv_heads, spec.head_dim) == (34, 4, 256)


def test_a_null_is_not_a_missing_field():
    config = {"model_type": "qwen3", "num_hidden_layers": 2, "num_attention_heads": 16}
    assert CacheSpec.from_hf_config({**config, "hidden_size": 1024}).kv_heads == 32
    nulls = {**config, "hidden_size": 1024, "num_key_value_heads": None, "head_dim": None}
    spec = CacheSpec.from_hf_config(nulls)
    assert (spec.kv_heads, spec.head_dim) == (16, 64)


PLAIN = {
    "model_type": "brand_new",
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "hidden_size": 512,
}
SIGNS = {
    "attention_layer_pattern": ["full", "none"] * 4,
    "attn_layers": [0, 4],
    "hybrid_ratio": 4,
    "cross_attention_freq": 4,
    "mamba_d_state": 16,
    "rwkv_head_size": 64,
    "linear_num_key_heads": 16,
    "num_kv_shared_groups": 4,
    "share_kv_every": 2,
    "global_head_dim_wide": 512,
    "kv_lora_dim": 512,
    "index_topk": 2048,
    "compress_ratios": [0, 4] * 4,
}


def test_a_new_family_with_nothing_unusual_is_read():
    spec = CacheSpec.from_hf_config(PLAIN)
    assert (spec.layers, spec.kv_heads, spec.head_dim) == (8, 2, 64)


@pytest.mark.parametrize("name", SIGNS)
def test_a_field_that_is_not_understood_is_refused_by_name(name):
    with pytest.raises(SpecError, match=name) as caught:
        CacheSpec.from_hf_config({**PLAIN, name: SIGNS[name]})
    assert "by hand" in str(caught.value)
    for nothing in (None, False, 0, []):
        CacheSpec.from_hf_config({**PLAIN, name: nothing})


@pytest.mark.parametrize("name", ["num_key_value_heads", "head_dim"])
def test_a_new_family_gets_no_guess(name):
    with pytest.raises(SpecError, match=rf"brand_new.*{name}.*by hand"):
        CacheSpec.from_hf_config({key: n for key, n in PLAIN.items() if key != name})


def test_a_shape_given_by_hand_is_not_looked_for():
    config = {**PLAIN, "compress_ratios": [0, 4] * 4, "max_position_embeddings": 4096}
    spec = CacheSpec.from_hf_config(config, layers=3, kv_heads=1, head_dim=128)
    assert (spec.layers, spec.kv_heads, spec.head_dim, spec.max_tokens) == (3, 1, 128, 4096)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**PLAIN, "layer_types": ["full_attention"] * 7}, "7 layers, and there are 8"),
        ({**PLAIN, "layer_types": ["full_attention", "rwkv8"] * 4}, "layer_types.*'rwkv8'"),
        ({**NEMOTRON_H_8B, "hybrid_override_pattern": "M*Q"}, "'Q'"),
        ({**BAMBA_9B, "attn_layer_indices": [9, 32]}, r"attn_layer_indices=\[9, 32\].*32"),
        ({**BAMBA_9B, "attn_layer_indices": []}, "none of the model's 32 layers"),
        (
            {**LFM2, "layer_types": ["conv"] * 15 + ["full_attention"]},
            "layer_types and full_attn_idxs",
        ),
        (
            {key: n for key, n in ZAMBA2.items() if "type" not in key or key == "model_type"},
            "zamba2",
        ),
        ({"model_type": "mamba2", "num_hidden_layers": 64, "head_dim": 64}, "'mamba2'"),
        ({**PLAIN, "num_kv_shared_layers": 8}, "num_kv_shared_layers=8"),
        ({**MPT, "attn_config": {"attn_type": "grouped_query_attention"}}, "kv_n_heads"),
        ({**KIMI_LINEAR, "linear_attn_config": {"full_attn_layers": [4]}}, r"1 \+ 0.*8"),
    ],
)
def test_what_cannot_be_one_spec_is_refused_saying_why(config, message):
    with pytest.raises(SpecError, match=message):
        CacheSpec.from_hf_config(config)


def test_nemotron_ultra_has_its_layers_in_a_list_alone():
    kinds = ["mamba", "moe", "mamba", "attention", "moe"] * 2
    config = {**NEMOTRON_H_8B, "layers_block_type": kinds}
    del config["num_hidden_layers"], config["hybrid_override_pattern"]
    assert CacheSpec.from_hf_config(config).layers == 2


def test_remarks_say_what_the_cache_does_not_hold():
    assert remarks(NEMOTRON_NAS) == []
    assert "36 of 48 layers keep a state" in remarks(QWEN3_NEXT)[0]
    windows = {**PLAIN, "layer_types": ["sliding_attention", "full_attention"] * 4}
    assert "4 of 8 layers attend within a window; the cache keeps every" in remarks(windows)[0]
    (known,) = remarks({**windows, "sliding_window": 64})
    assert known == "4 of 8 layers attend within a window of 64 tokens, and keep no more."


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            QWEN3_NEXT,
            "holds these layers; the 36 with a state share no prefixes and take no CUDA graphs.",
        ),
        (
            FALCON_H1,
            "holds these layers; the 36 with a state share no prefixes and take no CUDA graphs.",
        ),
        (MLLAMA, "refuses this model for its 8 layers with attention to images."),
        (MIMO_V2_FLASH, "holds these layers; V of another width takes torch's attention."),
        (GEMMA_4, "holds these layers."),
        ({**PLAIN, "kv_lora_rank": 512}, "in every step, without CUDA graphs."),
        (
            {**PLAIN, "model_type": "llama4_text", "attention_chunk_size": 512},
            "holds these layers.",
        ),
    ],
)
def test_what_the_integration_does_with_it(config, said, tmp_path):
    assert supported(config).endswith(said)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    output = CliRunner().invoke(cli, ["plan", str(path), "--driver", "cumem", "--json"]).output
    assert json.loads(output)["remarks"][-1] == supported(config)


def test_plan_says_what_the_cache_does_not_hold(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(QWEN3_NEXT))
    said = CliRunner().invoke(cli, ["plan", str(path), "--driver", "cumem"]).output
    assert "12 layers, 2 KV heads of 256" in said
    assert "36 of 48 layers keep a state" in said


def test_a_shape_in_part_does_not_go_with_layers_that_differ(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(MIMO_V2_FLASH))
    with pytest.raises(
        SpecError, match=r"5 of sliding_attention with 8 heads of 192 \(K\) and 128"
    ):
        CliRunner().invoke(cli, ["plan", str(path), "--head-dim", "192"], catch_exceptions=False)


def test_v_narrower_than_k():
    spec = CacheSpec.from_hf_config(MIMO_V2_FLASH)
    windowed, full = spec.parts
    assert (windowed.kv_heads, windowed.head_dim, windowed.v_head_dim) == (8, 192, 128)
    assert (full.kv_heads, full.head_dim, full.v_head_dim) == (4, 192, 128)
    # Its class counts the tokens before the newest.
    assert spec.windows == (129, None)
    assert (windowed.token_bytes_per_layer, full.token_bytes_per_layer) == (5120, 2560)


def test_layers_that_read_anothers_k_and_v():
    spec = CacheSpec.from_hf_config(HUNYUAN)
    assert spec.layers == 64
    assert spec.shared == {layer: layer - 1 for layer in range(1, 64, 2)}
    kinds = (["sliding_attention"] * 4 + ["full_attention"]) * 7
    gemma = {"model_type": "gemma3n_text", "layer_types": kinds, "sliding_window": 512}
    spec = CacheSpec.from_hf_config(gemma)
    assert spec.layers == 35
    assert spec.shared == {layer: 19 if layer % 5 == 4 else 18 for layer in range(20, 35)}
    assert [spec.window_of(layer) for layer in (18, 19, 33, 34)] == [512, None, 512, None]
    # The class makes the same list where a file has none.
    del gemma["layer_types"]
    assert CacheSpec.from_hf_config(gemma) == spec


# Of every family that docs/hybrid.md lists: what says which layers there are, or what they keep.
LISTED = {
    "sliding_window_pattern": 2,
    "_sliding_window_pattern": "LG",
    "attention_chunk_size": 512,
    "global_head_dim": 128,
    "num_global_key_value_heads": 4,
    "swa_num_key_value_heads": 4,
    "swa_head_dim": 32,
    "swa_v_head_dim": 32,
    "index_head_dim": 128,
    "index_topk": 2048,
    "index_kpool": 4,
    "compress_ratios": [0, 4] * 4,
    "use_cla": True,
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 4,
    "linear_conv_kernel_dim": 4,
    "linear_num_heads": 4,
    "linear_head_dim": 8,
    "mamba_ssm_dtype": "float32",
    "mamba_num_heads": 4,
    "mamba_head_dim": 8,
    "ssm_state_size": 8,
    "conv_kernel": 4,
    "mamba_n_heads": 4,
    "mamba_d_head": 4,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_d_ssm": 64,
    "n_mamba_heads": 4,
    "mamba_ngroups": 2,
    "conv_L_cache": 3,
}
READ = {
    "layer_types": ["sliding_attention", "full_attention"] * 4,
    "num_kv_shared_layers": 2,
    "hybrid_layer_pattern": [0, 1] * 4,
    "v_head_dim": 32,
    "kv_lora_rank": 512,
    "full_attention_interval": 4,
    "hybrid_override_pattern": "M*M*M*M*",
    "layers_block_type": ["attention", "mamba"] * 4,
    "block_configs": [{"attention": {"n_heads_in_group": 2}}] * 8,
    "attn_layer_indices": [1, 2],
    "attn_type_list": [1, 0] * 4,
    "linear_attn_config": {"full_attn_layers": [1, 2], "kda_layers": [3, 4, 5, 6, 7, 8]},
    "full_attn_idxs": [1, 2],
}
UNKNOWN = {**PLAIN, "model_type": "of_tomorrow", "sliding_window": 512, "head_dim": 64}


@pytest.mark.parametrize("name", LISTED)
def test_a_listed_key_that_is_not_understood_is_an_error(name):
    CacheSpec.from_hf_config(UNKNOWN)
    with pytest.raises(SpecError, match=f"{name}=|no layer_types say which"):
        CacheSpec.from_hf_config({**UNKNOWN, name: LISTED[name]})


@pytest.mark.parametrize("name", READ)
def test_a_listed_key_is_read_in_every_family(name):
    assert CacheSpec.from_hf_config({**UNKNOWN, name: READ[name]}) != CacheSpec.from_hf_config(
        UNKNOWN
    )


LLAMA_4 = {**PLAIN, "model_type": "llama4_text", "attention_chunk_size": 512}


@pytest.mark.parametrize(
    ("changes", "chunked"),
    [
        ({}, [0, 1, 2, 4, 5, 6]),
        ({"no_rope_layers": []}, [0, 1, 2, 4, 5, 6]),
        ({"no_rope_layer_interval": 2}, [0, 2, 4, 6]),
        ({"no_rope_layers": [1, 0, 0, 0, 1, 0, 0, 0]}, [0, 4]),
        ({"layer_types": ["chunked_attention", *["full_attention"] * 7]}, [0]),
    ],
)
def test_layers_of_chunks_keep_as_much_as_a_chunk(changes, chunked):
    spec = CacheSpec.from_hf_config({**LLAMA_4, **changes})
    kept = [512 if layer in chunked else None for layer in range(8)]
    assert [spec.window_of(layer) for layer in range(8)] == kept


def test_gemma_4_has_a_full_layer_last():
    spec = CacheSpec.from_hf_config({**GEMMA_4, "layer_types": ["sliding_attention"] * 6})
    assert [part.head_dim for part in spec.parts] == [256, 512]
    assert spec.group_of(5) == (1, 0)


@pytest.mark.parametrize(("pattern", "full"), [(3, [2, 5]), ("LGG", [1, 2, 4, 5, 7])])
def test_exaone_4_has_a_number_or_letters(pattern, full):
    exaone = {**PLAIN, "model_type": "exaone4", "sliding_window": 512}
    spec = CacheSpec.from_hf_config({**exaone, "sliding_window_pattern": pattern})
    assert [layer for layer in range(8) if spec.window_of(layer) is None] == full
