# SPDX-License-Identifier: Apache-2.0
"""Sizes that make a small model of each causal class of the library.

Layers are of every kind that the class has by default, a layer for each kind, and two where they
are all alike.
"""

from __future__ import annotations

import dataclasses

from tiny_models import VOCABULARY, torch, transformers

# By whatever name a config has for them; what it does not know is left out.
SIZES = {
    "vocab_size": VOCABULARY,
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 2),
    "decoder_layers": 2,
    # Not those of the decoder, so that none is taken for the other's.
    "encoder_layers": 3,
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "ffn_hidden_size", "dim_ff"), 96),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 96),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 128),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace"), 1),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "v_head_dim", "head_dim", "rotary_dim"), 16),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim"), 8),
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "sliding_window": 8,
    "attention_chunk_size": 8,
    "is_decoder": True,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    # Latent attention's indexer, which picks fewer tokens than the prompts have.
    "index_topk": 4,
    "index_n_heads": 4,
    "index_head_dim": 16,
    # Gated delta rules.
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads"), 4),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 16),
    "linear_num_heads": 4,
    "linear_head_dim": 16,
    "linear_conv_kernel_dim": 4,
    # Mamba.
    **dict.fromkeys(("mamba_n_heads", "n_mamba_heads", "mamba_num_heads"), 8),
    **dict.fromkeys(("mamba_d_head", "mamba_headdim", "mamba_head_dim"), 16),
    **dict.fromkeys(("mamba_d_state", "ssm_state_size", "state_size"), 8),
    **dict.fromkeys(("mamba_n_groups", "mamba_ngroups", "n_groups"), 1),
    **dict.fromkeys(("mamba_chunk_size", "chunk_size"), 16),
    "mamba_dt_rank": 4,
    "use_mamba_kernels": False,
}
_PATTERN = "layer_types"


def _text(**sizes):
    """Sizes of a class whose text model has a config inside its own."""
    return {"text_config": {**{name: SIZES[name] for name in _TEXT}, **sizes}}


_TEXT = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "max_position_embeddings",
    "sliding_window",
    "initializer_range",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
)


_VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "image_size": 28,
    "patch_size": 14,
}
_BYTES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "vocab_size": VOCABULARY,
    "initializer_range": 0.2,
}
# What a class needs besides, or in place of a size above; LEFT_OUT takes that away.
LEFT_OUT = object()
OWN = {
    "BambaForCausalLM": {"attn_layer_indices": [1]},
    "FalconH1ForCausalLM": {"mamba_d_ssm": 128},
    "JambaForCausalLM": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
    },
    "Mamba2ForCausalLM": {"num_heads": 8, "head_dim": 16},
    "ZambaForCausalLM": {
        "n_mamba_heads": 2,
        "num_key_value_heads": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 0,
        "num_hidden_layers": 4,
        "layers_block_type": LEFT_OUT,
    },
    "Zamba2ForCausalLM": {
        "num_key_value_heads": 4,
        "num_mem_blocks": 1,
        "use_shared_attention_adapter": True,
        "adapter_rank": 8,
    },
    "BltForCausalLM": {
        "patch_in_forward": False,
        "encoder_hash_byte_group_size": [3],
        "encoder_hash_byte_group_vocab": 64,
        "encoder_config": {**_BYTES, "hidden_size_global": 64, "num_hidden_layers": 1},
        "decoder_config": {**_BYTES, "hidden_size_global": 64},
        "global_config": _BYTES,
        "patcher_config": _BYTES,
    },
    "CohereCompassForCausalLM": {
        "hidden_size": 256,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 1e4}
            for kind in ("sliding_attention", "full_attention")
        },
    },
    "CpmAntForCausalLM": {"dim_head": 16, "segment_types": 4, "prompt_types": 4},
    "DbrxForCausalLM": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "DeepseekV4ForCausalLM": {"num_key_value_heads": 1, "o_groups": 2, "o_lora_rank": 16},
    "GPTNeoForCausalLM": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "Gemma3nForCausalLM": {
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 16,
        "num_kv_shared_layers": 0,
        "laurel_rank": 8,
        "activation_sparsity_pattern": [0.0, 0.0],
    },
    "Gemma4ForCausalLM": {
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 16,
        "global_head_dim": 16,
    },
    "Gemma3ForConditionalGeneration": {**_text(), "vision_config": _VISION},
    "Gemma4ForConditionalGeneration": {
        **_text(vocab_size_per_layer_input=VOCABULARY, hidden_size_per_layer_input=16),
        "vision_config": _VISION,
        "audio_config": None,
    },
    "Gemma4UnifiedForConditionalGeneration": {
        **_text(vocab_size_per_layer_input=VOCABULARY, hidden_size_per_layer_input=16),
        "vision_config": _VISION,
        "audio_config": None,
    },
    "GraniteMoeHybridForCausalLM": {"layer_types": ["mamba", "attention"]},
    "GotOcr2ForConditionalGeneration": {
        **_text(),
        "vision_config": {
            "hidden_size": 32,
            "output_channels": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 64,
            "patch_size": 16,
            "mlp_dim": 32,
            "global_attn_indexes": [0],
            "window_size": 4,
        },
    },
    "Phi4MultimodalForCausalLM": {
        "vision_config": {**_VISION, "crop_size": 28},
        "audio_config": {
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_blocks": 1,
            "num_attention_heads": 2,
            "ext_pw_out_channel": 32,
            "nemo_conv_channels": 32,
        },
    },
    "Qwen4ExpForCausalLM": {
        "hc_count": 2,
        "hc_lowrank": 8,
        "ngram_vocab_size_base": 97,
        "make_ngram_vocab_size_divisible_by": 1,
        "split_ngram_parts": 1,
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 4,
        "indexer_compress_ratio": 2,
        "linear_num_value_heads": 4,
    },
    "ReformerModelWithLMHead": {
        "axial_pos_embds_dim": [32, 32],
        "axial_pos_shape": [8, 16],
        "attn_layers": ["local", "lsh"],
        "attention_head_size": 16,
        "num_buckets": 4,
        "feed_forward_size": 96,
        "lsh_attn_chunk_length": 8,
        "local_attn_chunk_length": 8,
    },
    "GitForCausalLM": {"vision_config": _VISION},
    "LongcatFlashForCausalLM": {
        "num_layers": 1,
        "num_hidden_layers": 2,
        "head_dim": 8,
        "expert_ffn_hidden_size": 32,
        "zero_expert_num": 2,
        "moe_topk": 2,
        "num_key_value_heads": 4,
    },
    "MoshiForCausalLM": {"sliding_window": 8},
    "RoCBertForCausalLM": {
        "pronunciation_embed_dim": 16,
        "shape_embed_dim": 16,
        "pronunciation_vocab_size": VOCABULARY,
        "shape_vocab_size": VOCABULARY,
    },
    "XmodForCausalLM": {"default_language": "en_XX", "languages": ["en_XX"]},
    "xLSTMForCausalLM": {"num_heads": 4, "qk_dim_factor": 1.0},
    "ZayaForCausalLM": {"num_experts_per_tok": 1, "router_hidden_size": 16},
    # By default it generates without a cache.
    "MptForCausalLM": {"use_cache": True},
    "MllamaForCausalLM": {"cross_attention_layers": [1]},
    "MusicgenForCausalLM": {"num_codebooks": 1},
    "MusicgenMelodyForCausalLM": {"num_codebooks": 1},
    "RecurrentGemmaForCausalLM": {
        "num_hidden_layers": 3,
        "num_key_value_heads": 1,
        "attention_window_size": 8,
        "sliding_window": LEFT_OUT,
        "lru_width": 64,
    },
    "InklingForCausalLM": {
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 2,
        "swa_head_dim": 16,
        "sliding_window_size": 8,
        "rel_extent": 32,
        "d_rel": 4,
        "unpadded_vocab_size": VOCABULARY,
    },
}


def class_of(family):
    return getattr(transformers, family)


def make(family):
    """Return a small model of ``family``; raises whatever the library raises."""
    model_class = class_of(family)
    config = _config(family, model_class.config_class)
    with torch.device("meta"):
        count = sum(each.numel() for each in model_class(config).parameters())
    assert count < MOST_PARAMETERS, f"{family} is not small with these sizes: {count:,} parameters"
    torch.manual_seed(1)
    return model_class(config).eval()


MOST_PARAMETERS = 3_000_000


def _config(family, config_class):
    known = {field.name for field in dataclasses.fields(config_class)}
    aliases = getattr(config_class, "attribute_map", {})
    sizes = {
        name: size
        for name, size in SIZES.items()
        if name in known or (aliases.get(name) in known and aliases[name] not in SIZES)
    }
    if "qk_rope_head_dim" in sizes:
        # Latent vectors become as many K and V heads as there are query heads, and rotary
        # frequencies are for a part of a head, whose width the class knows.
        sizes["num_key_value_heads"] = sizes.get("num_attention_heads")
        sizes.pop("head_dim", None)
    pattern = aliases.get(_PATTERN, _PATTERN)
    if pattern in known:
        kinds = list(dict.fromkeys(getattr(config_class(), _PATTERN) or ["full_attention"]))
        sizes[pattern] = kinds if len(kinds) > 1 else kinds * 2
        sizes["num_hidden_layers"] = len(sizes[pattern])
    elif "sliding_window" in sizes:
        # There every layer would have the window.
        sizes["sliding_window"] = None
    sizes |= OWN.get(family, {})
    return config_class(**{name: size for name, size in sizes.items() if size is not LEFT_OUT})
