# SPDX-License-Identifier: Apache-2.0
"""Configs of real models, as far as they say what layers keep."""

QWEN3_NEXT = {
    "model_type": "qwen3_next",
    "num_hidden_layers": 48,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "hidden_size": 2048,
    "full_attention_interval": 4,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_conv_kernel_dim": 4,
    "mlp_only_layers": [],
}
NEMOTRON_H_8B = {
    "model_type": "nemotron_h",
    "num_hidden_layers": 52,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "attention_head_dim": 128,
    "hidden_size": 4096,
    "hybrid_override_pattern": "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-",
    "mamba_num_heads": 128,
    "ssm_state_size": 128,
    "conv_kernel": 4,
}
# The file in the hub: fields of the language model beside those of the whole.
QWEN2_VL_7B = {
    "model_type": "qwen2_vl",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "sliding_window": 32768,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vision_config": {"depth": 32, "embed_dim": 1280, "hidden_size": 3584, "num_heads": 16},
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
}
DBRX = {
    "model_type": "dbrx",
    "d_model": 6144,
    "n_heads": 48,
    "n_layers": 40,
    "max_seq_len": 32768,
    "attn_config": {"kv_n_heads": 8, "clip_qkv": 8, "rope_theta": 500000},
}
MPT = {
    "model_type": "mpt",
    "d_model": 4096,
    "n_heads": 32,
    "n_layers": 32,
    "max_seq_len": 2048,
    "attn_config": {"attn_type": "multiquery_attention"},
}
STEP_3 = {
    "model_type": "step3_text",
    "hidden_size": 7168,
    "num_attention_heads": 64,
    "num_attention_groups": 1,
    "num_hidden_layers": 61,
    "head_dim": 256,
    "share_q_dim": 2048,
}
ATTENDS = {"n_heads_in_group": 8, "no_op": False, "replace_with_linear": False}
NEMOTRON_NAS = {
    "model_type": "nemotron-nas",
    "hidden_size": 8192,
    "num_attention_heads": 64,
    "num_hidden_layers": 4,
    "num_key_value_heads": None,
    "block_configs": [
        {"attention": ATTENDS},
        {"attention": {**ATTENDS, "n_heads_in_group": None, "no_op": True}},
        {"attention": {**ATTENDS, "n_heads_in_group": None, "replace_with_linear": True}},
        {"attention": ATTENDS},
    ],
}
BAMBA_9B = {
    "model_type": "bamba",
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_size": 4096,
    "attn_layer_indices": [9, 18, 27],
    "mamba_n_heads": 128,
}
MINIMAX_01 = {
    "model_type": "minimax_text_01",
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "attn_type_list": [0, 0, 0, 0, 0, 0, 0, 1] * 10,
}
KIMI_LINEAR = {
    "model_type": "kimi_linear",
    "num_hidden_layers": 8,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "mla_use_nope": True,
    "linear_attn_config": {
        "full_attn_layers": [4, 8],
        "kda_layers": [1, 2, 3, 5, 6, 7],
        "num_heads": 32,
    },
}
LFM2 = {
    "model_type": "lfm2",
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_size": 2048,
    "full_attn_idxs": [2, 5, 8, 10, 12, 14],
    "conv_L_cache": 3,
}
RECURRENT_GEMMA = {
    "model_type": "recurrent_gemma",
    "num_hidden_layers": 26,
    "num_attention_heads": 10,
    "num_key_value_heads": 1,
    "hidden_size": 2560,
    "block_types": ["recurrent", "recurrent", "attention"],
    "attention_window_size": 2048,
    "lru_width": 2560,
}
ZAMBA2 = {
    "model_type": "zamba2",
    "num_hidden_layers": 6,
    "num_attention_heads": 32,
    "hidden_size": 2560,
    "layers_block_type": ["mamba", "mamba", "hybrid", "mamba", "mamba", "hybrid"],
    "mamba_d_state": 64,
}
MLLAMA = {
    "model_type": "mllama",
    "text_config": {
        "model_type": "mllama_text_model",
        "num_hidden_layers": 40,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "hidden_size": 4096,
        "cross_attention_layers": [3, 8, 13, 18, 23, 28, 33, 38],
    },
}
HUNYUAN = {
    "model_type": "hunyuan_v1_moe",
    "num_hidden_layers": 64,
    "num_attention_heads": 80,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_size": 6400,
    "use_cla": True,
    "cla_share_factor": 2,
}
GEMMA_3_12B = {
    "model_type": "gemma3",
    "text_config": {
        "model_type": "gemma3_text",
        "hidden_size": 3840,
        "num_attention_heads": 16,
        "num_hidden_layers": 48,
        "num_key_value_heads": 8,
        "sliding_window": 1024,
    },
}
JAMBA = {
    "model_type": "jamba",
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_size": 4096,
    "attn_layer_period": 8,
    "attn_layer_offset": 4,
    "mamba_d_state": 16,
}
FALCON_H1 = {
    "model_type": "falcon_h1",
    "num_hidden_layers": 36,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "mamba_n_heads": 24,
}
CHATGLM = {
    "model_type": "chatglm",
    "num_layers": 28,
    "num_attention_heads": 32,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "kv_channels": 128,
    "seq_length": 8192,
}

# Bytes a token, with 2 bytes an element.
GEMMA_4 = {
    "model_type": "gemma4_text",
    "num_hidden_layers": 6,
    "num_attention_heads": 32,
    "num_key_value_heads": 16,
    "head_dim": 256,
    "global_head_dim": 512,
    "num_global_key_value_heads": 4,
    "attention_k_eq_v": True,
    "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
}
MIMO_V2_FLASH = {
    "model_type": "mimo_v2_flash",
    "num_hidden_layers": 6,
    "num_attention_heads": 64,
    "num_key_value_heads": 4,
    "head_dim": 192,
    "v_head_dim": 128,
    "swa_num_key_value_heads": 8,
    "swa_head_dim": 192,
    "swa_v_head_dim": 128,
    "sliding_window_size": 128,
    "hybrid_layer_pattern": [0, 1, 1, 1, 1, 1],
}
