# SPDX-License-Identifier: Apache-2.0
"""What configs leave out: the defaults of transformers' config classes.

``scripts/generate_families.py`` writes the table between the marks. A family
that is in it and has no number of KV heads has as many as query heads, and one
without a head dimension divides the hidden size by them: that is what its class
does with a null.
"""

from __future__ import annotations

# Nothing is kept for each token, or not as K and V.
STATE_ONLY = frozenset({"falcon_mamba", "mamba", "mamba2", "reformer", "rwkv", "xlnet", "xlstm"})
# Every layer keeps K, V and a state.
ALL_HYBRID = frozenset({"falcon_h1"})
# Their classes make no list of what each layer is, and layers differ.
WITHOUT_A_LIST = frozenset({"lfm2_moe", "mllama_text_model", "recurrent_gemma"})
# BERT and its like: decoders where is_decoder says so, and their heads are all given.
BERTS = frozenset(
    {
        "bert", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert",
        "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta",
        "xlm-roberta-xl", "xmod",
    }
)  # fmt: skip
# Encoder-decoders, whose decoder is a model of its own where is_encoder_decoder is false.
WITH_AN_ENCODER = frozenset(
    {
        "bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "marian", "mbart", "mvp",
        "pegasus", "plbart", "prophetnet", "trocr", "whisper",
    }
)  # fmt: skip
# Named as parts of others are, and language models of their own.
PARTS = frozenset({"emu3_text_model"})
# Not in transformers, and with heads as in Llama where nothing else is said.
OTHERS = frozenset(
    {"baichuan", "deepseek", "internlm2", "kimi_k2", "mimo", "minicpm", "nemotron-nas", "qwen"}
)

# Read by their classes from the file, with a default, and not kept as fields.
KEYS_WITHOUT_A_FIELD: dict[str, dict[str, int]] = {
    "gemma4_text": {"global_head_dim": 512},
    "gemma4_unified_text": {"global_head_dim": 512},
    "diffusion_gemma_text": {"global_head_dim": 512},
    "qwen3_next": {"full_attention_interval": 4},
    "qwen3_5_text": {"full_attention_interval": 4},
    "qwen3_5_moe_text": {"full_attention_interval": 4},
}

# fmt: off
# ruff: noqa: E501
# begin generated
VERSION = "5.17.0"
DEFAULTS: dict[str, dict[str, int]] = {
    "afmoe": {"num_hidden_layers": 32, "num_attention_heads": 16, "hidden_size": 2048, "head_dim": 128, "max_position_embeddings": 16384},
    "apertus": {"num_hidden_layers": 32, "num_attention_heads": 32, "hidden_size": 4096, "max_position_embeddings": 65536},
    "arcee": {"num_hidden_layers": 32, "num_attention_heads": 32, "hidden_size": 2560, "max_position_embeddings": 4096},
    "aria_text": {"num_hidden_layers": 32, "num_attention_heads": 32, "hidden_size": 4096, "max_position_embeddings": 2048},
    "axk1": {"num_hidden_layers": 61, "num_attention_heads": 64, "num_key_value_heads": 64, "hidden_size": 7168, "max_position_embeddings": 32768, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "v_head_dim": 128},
    "axk2": {"num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 32, "hidden_size": 2048, "head_dim": 64, "max_position_embeddings": 131072, "kv_lora_rank": 128, "qk_rope_head_dim": 32, "index_head_dim": 128, "v_head_dim": 64},
    "bamba": {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096, "max_position_embeddings": 262144},
    "bert-generation": {"num_hidden_layers": 24, "num_attention_heads": 16, "hidden_size": 1024, "max_position_embeddings": 512},
    "biogpt": {"num_hidden_layers": 24, "num_attention_heads": 16, "hidden_size": 1024, "max_position_embeddings": 1024},
    "bitnet": {"num_hidden_layers": 30, "num_attention_heads": 20, "num_key_value_heads": 5, "hidden_size": 2560, "max_position_embeddings": 2048},
    "bloom": {"n_layer": 2, "n_head": 8, "hidden_size": 64},
    "blt": {"max_position_embeddings": 4096},
    "codegen": {"n_layer": 28, "n_head": 16, "n_embd": 4096, "n_positions": 2048},
    "cohere": {"num_hidden_layers": 40, "num_attention_heads": 64, "hidden_size": 8192, "max_position_embeddings": 8192},
    "cohere2": {"num_hidden_layers": 40, "num_attention_heads": 64, "hidden_size": 8192, "max_position_embeddings": 8192},
    "cohere2_moe": {"num_hidden_layers": 40, "num_attention_heads": 64, "hidden_size": 8192, "head_dim": 128, "max_position_embeddings": 8192},
    "cohere_compass_text": {"num_hidden_layers": 40, "num_attention_heads": 64, "hidden_size": 8192, "max_position_embeddings": 8192},
    "cosmos3_edge_text": {"num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "hidden_size": 2048, "head_dim": 128, "max_position_embeddings": 131072},
    "cpmant": {"num_hidden_layers": 48, "num_attention_heads": 32, "hidden_size": 4096, "dim_head": 128},
    "ctrl": {"n_layer": 48, "n_head": 16, "n_embd": 1280, "n_positions": 256},
    "cwm": {"num_hidden_layers": 64, "num_attention_heads": 48, "num_key_value_heads": 8, "hidden_size": 6144, "head_dim": 128, "max_position_embeddings": 131072},
    "dbrx": {"n_layers": 24, "n_heads": 16, "d_model": 2048},
    "deepseek_ocr2_text": {"num_hidden_layers": 32, "num_attention_heads": 32, "hidden_size": 4096, "max_position_embeddings": 2048},
    "deepseek_v2": {"num_hidden_layers": 32, "num_attention_heads": 32, "hidden_size": 4096, "max_position_embeddings": 2048, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "v_head_dim": 128},
    "deepseek_v3": {"num_hidden_layers": 61, "num_attention_heads": 128, "num_key_value_heads": 128, "hidden_size": 7168, "max_position_embeddings": 4096, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "v_head_dim": 128},
    "deepseek_v32": {"num_hidden_layers": 61, "num_attention_heads": 128, "num_key_value_heads": 128, "hidden_size": 7168, "head_dim": 64, "max_position_embeddings": 163840, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "index_head_dim": 128, "v_head_dim": 128},
    "deepseek_v4": {"num_hidden_layers": 43, "num_attention_heads": 64, "num_key_value_heads": 1, "hidden_size": 4096, "head_dim": 512, "max_position_embeddings": 1048576, "index_head_dim": 128},
    "diffllama": {"num_hidden_layers": 16, "num_attention_heads": 32, "hidden_size": 2048, "max_position_embeddings": 2048},
    "diffusion_gemma_text": {"num_hidden_layers": 30, "num_attention_heads": 8, "num_key_value_heads": 4, "hidden_size": 2304, "head_dim": 256, "max_position_embeddings": 131072},
    "doge": {"num_hidden_layers": 32, "num_attention_heads": 8, "hidden_size": 1024, "max_position_embeddings": 2048},
    "dots1": {"num_hidden_layers": 62, "num_attention_heads": 32, "num_key_value_heads": 32, "hidden_size": 4608, "max_position_embeddings": 2048},
    "ernie4_5": {"num_hidden_layers": 18, "num_attention_heads": 16, "num_key_value_heads": 2, "hidden_size": 1024, "head_dim": 128, "max_position_embeddings": 131072},
    "ernie4_5_moe": {"num_hidden_layers": 28, "num_attention_heads": 20, "num_key_value_heads": 4, "hidden_size": 2560, "max_position_embeddings": 131072},
    "ernie4_5_vl_moe_text": {"num_hidden_layers": 28, "num_attention_heads": 20, "num_key_value_heads": 4, "hidden_size": 2560, "max_position_embeddings": 131072},
    "exaone4": {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "hidden_size": 4096, "max_position_embeddings": 2048},
    "exaone_moe": {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "hidden_size": 4096, "max_position_embeddings": 2048},
    "falcon": {"num_hidden_layers": 32, "num_attention_heads": 71, "hidden_size": 4544, "max_position_embeddings": 2048, "multi_query": True},
    "falcon_h1": {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096, "max_position_embeddings": 8192},
    "falcon_mamba": {"num_hidden_layers": 32, "hidden_size": 768},
    "flex_olmo": {"num_hidden_layers": 32, "num_attention_heads": 32, "hidden_size": 4096, "max_position_embeddings": 4096},
    "fuyu": {"num_hidden_layers": 36, "num_attention_heads": 64, "hidden_size": 4096, "max_position_embeddings": 16384},
    "gemma": {"num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 16, "hidden_size": 3072, "head_dim": 256, "max_position_embeddings": 8192},
    "gemma2": {"num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4, "hidden_size": 2304, "head_dim": 256, "max_position_embeddings": 8192},
    "gemma3_text": {"num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4, "hidden_size": 2304, "head_dim": 256, "max_position_embeddings": 131072},
    "gemma3n_text": {"num_hidden_layers": 35, "num_attention_heads": 8, "num_key_value_heads": 2, "hidden_size": 2048, "head_dim": 256, "max_position_embeddings": 32768, "num_kv_shared_layers": 15},
    "gemma4_text": {"num_hidden_layers": 30, "num_attention_heads": 8, "num_key_value_heads": 4, "hidden_size": 2304, "head_dim": 256, "max_position_embeddings": 131072, "num_kv_shared_layers": 0, "attention_k_eq_v": False},
    "gemma4_unified_text": {"num_hidden_layers": 30, "num_attention_heads": 8, "num_key_value_heads": 4, "hidden_size": 2304, "head_dim": 256, "max_position_embeddings": 262144, "num_kv_shared_layers": 0, "attention_k_eq_v": False},
    "git": {"num_hidden_layers": 6, "num_attention_heads": 12, "hidden_size": 768, "max_position_embeddings": 1024},
    "glm": {"num_hidden_layers": 40, "num_attention_heads": 32, "num_key_value_heads": 2, "hidden_size": 4096, "head_dim": 128, "max_position_embeddings": 131072},
    "glm4": {"num_hidden_layers": 40, "num_attention_heads": 32, "num_key_value_heads": 2, "hidden_size": 4096, "head_dim": 128, "max_position_embeddings": 131072},
    "glm4_moe": {"num_hidden_layers": 46, "num_attention_heads": 96, "num_key_value_heads": 8, "hidden_size": 4096, "max_position_embeddings": 131072},
    "glm4_moe_lite": {"num_hidden_layers": 47, "num_attention_heads": 20, "num_key_value_heads": 20, "hidden_size": 2048, "max_position_embeddings": 202752, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "v_head_dim": 256},
    "glm4v_moe_text": {"num_hidden_layers": 46, "num_attention_heads": 96, "num_key_value_heads": 8, "hidden_size": 4096, "max_position_embeddings": 65536},
    "glm4v_text": {"num_hidden_layers": 40, "num_attention_heads": 32, "num_key_value_heads": 2, "hidden_size": 4096, "max_position_embeddings": 32768},
    "glm5_next_text": {"num_hidden_layers": 45, "num_attention_heads": 64, "num_key_value_heads": 64, "hidden_size": 4096, "head_dim": 0, "max_position_embeddings": 1048576, "kv_lora_rank": 512, "qk_rope_head_dim": 0, "index_head_dim": 128, "v_head_dim": 256},
    "glm_image_text": {"num_hidden_layers": 40, "num_attention_heads": 32, "num_key_value_heads": 2, "hidden_size": 4096, "max_position_embeddings": 131072},
    "glm_moe_dsa": {"num_hidden_layers": 78, "num_attention_heads": 64, "num_key_value_heads": 64, "hidden_size": 6144, "head_dim": 64, "max_position_embeddings": 202752, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "index_head_dim": 128, "v_head_dim": 256},
    "glm_ocr_text": {"num_hidden_layers": 16, "num_attention_heads": 16, "num_key_value_heads": 8, "hidden_size": 1024, "max_position_embeddings": 131072},
    "gpt-sw3": {"n_layer": 12, "n_head": 12, "n_embd": 768, "n_positions": 1024},
    "gpt2": {"n_layer": 12, "n_head": 12, "n_embd": 768, "n_positions": 1024},
    "gpt_bigcode": {"n_layer": 12, "n_head": 12, "n_embd": 768, "n_positions": 1024, "multi_query": True},
    "gpt_neo": {"num_layers": 24, "num_heads": 16, "hidden_size": 2048, "max_position_embeddings": 2048},
    "gpt_neox": {"num_hidden_layers": 44, "num_attention_heads": 64, "hidden_size": 6144, "max_position_embeddings": 2048},
    "gpt_neox_japanese": {"num_hidden_layers": 32, "num_attention_heads": 32, "hidden_size": 2560, "max_position_embeddings": 2048},
    "gpt_oss": {"num_hidden_layers": 36, "num_attention_heads": 64, "num_key_value_heads": 8, "hidden_size": 2880, "head_dim": 64, "max_position_embeddings": 131072},
    "gptj": {"n_layer": 28, "n_head": 16, "n_embd": 4096, "n_positions": 2048},
    "granite": {"num_hidden_layers": 32, "num_attention_heads": 32, "hidden_size": 4096, "max_position_embeddings": 2048},
    "granite4_vision_text": {"num_hidden_layers": 32, "num_attention_heads": 32, "hidden_size": 4096, "max_position_embeddings": 2048},
    "granite_swa": {"num_hidden_layers": 24, "num_attention_heads": 20, "num_key_value_heads": 4, "hidden_size": 2560, "max_position_embeddings": 8192},
    "granitemoe": {"num_hidden_layers": 32, "num_attention_heads": 32, "hidden_size": 4096, "max_position_embeddings": 2048},
    "granitemoe_swa": {"num_hidden_layers": 32, "num_attention_heads": 32, "hidden_size": 4096, "max_position_embeddings": 2048},
    "granitemoehybrid": {"num_hidden_layers": 32, "num_attention_heads": 32, "hidden_size": 4096, "max_position_embeddings": 2048},
    "granitemoeshared": {"num_hidden_layers": 32, "num_attention_heads": 32, "hidden_size": 4096, "max_position_embeddings": 2048},
    "helium": {"num_hidden_layers": 24, "num_attention_heads": 20, "num_key_value_heads": 20, "hidden_size": 2560, "head_dim": 128, "max_position_embeddings": 4096},
    "hrm_text": {"num_hidden_layers": 16, "num_attention_heads": 12, "hidden_size": 1536, "head_dim": 128, "max_position_embeddings": 2048},
    "hunyuan_v1_dense": {"num_hidden_layers": 32, "num_attention_heads": 32, "hidden_size": 4096, "max_position_embeddings": 2048},
    "hunyuan_v1_moe": {"num_hidden_layers": 32, "num_attention_heads": 32, "hidden_size": 4096, "max_position_embeddings": 2048},
    "hunyuan_vl_text": {"num_hidden_layers": 32, "num_attention_heads": 32, "hidden_size": 4096, "max_position_embeddings": 2048},
    "hy_v3": {"num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8, "hidden_size": 4096, "head_dim": 128, "max_position_embeddings": 131072},
    "hy_v4": {"num_hidden_layers": 34, "num_attention_heads": 32, "num_key_value_heads": 32, "hidden_size": 2816, "head_dim": 256, "max_position_embeddings": 262144, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "index_head_dim": 128, "v_head_dim": 256},
    "hyperclovax": {"num_hidden_layers": 32, "num_attention_heads": 32, "hidden_size": 4096, "max_position_embeddings": 2048},
    "inkling_text": {"num_hidden_layers": 66, "num_attention_heads": 64, "num_key_value_heads": 8, "hidden_size": 6144, "head_dim": 128, "max_position_embeddings": 131072, "swa_num_key_value_heads": 16, "swa_head_dim": 128},
    "jais2": {"num_hidden_layers": 32, "num_attention_heads": 26, "hidden_size": 3328, "max_position_embeddings": 8192},
    "jamba": {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096, "max_position_embeddings": 262144, "attn_layer_period": 8, "attn_layer_offset": 4},
    "jetmoe": {"num_hidden_layers": 12, "num_key_value_heads": 16, "hidden_size": 2048, "kv_channels": 128, "max_position_embeddings": 4096},
    "kimi_linear": {"num_hidden_layers": 27, "num_attention_heads": 32, "num_key_value_heads": 32, "hidden_size": 2304, "max_position_embeddings": 1048576, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "v_head_dim": 128},
    "kyutai_speech_to_text": {"num_hidden_layers": 48, "num_attention_heads": 32, "hidden_size": 2048, "max_position_embeddings": 750},
    "laguna": {"num_hidden_layers": 40, "num_attention_heads": 48, "num_key_value_heads": 8, "hidden_size": 2048, "head_dim": 128, "max_position_embeddings": 131072},
    "lfm2": {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 2560, "max_position_embeddings": 128000},
    "lfm2_moe": {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 2048, "max_position_embeddings": 128000},
    "llama": {"num_hidden_layers": 32, "num_attention_heads": 32, "hidden_size": 4096, "max_position_embeddings": 2048},
    "llama4_text": {"num_hidden_layers": 48, "num_attention_heads": 40, "num_key_value_heads": 8, "hidden_size": 5120, "head_dim": 128, "max_position_embeddings": 131072},
    "longcat_flash": {"num_hidden_layers": 56, "num_layers": 28, "num_attention_heads": 64, "hidden_size": 6144, "head_dim": 64, "max_position_embeddings": 131072, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "v_head_dim": 128},
    "mamba": {"num_hidden_layers": 32, "hidden_size": 768},
    "mamba2": {"num_hidden_layers": 64, "num_heads": 128, "hidden_size": 4096, "head_dim": 64},
    "mellum": {"num_hidden_layers": 28, "num_attention_heads": 32, "num_key_value_heads": 4, "hidden_size": 2304, "head_dim": 128, "max_position_embeddings": 131072},
    "mimo_v2_flash": {"num_hidden_layers": 48, "num_attention_heads": 64, "num_key_value_heads": 4, "hidden_size": 4096, "head_dim": 192, "max_position_embeddings": 131072, "v_head_dim": 128},
    "minicpm3": {"num_hidden_layers": 62, "num_attention_heads": 40, "num_key_value_heads": 40, "hidden_size": 2560, "max_position_embeddings": 32768, "kv_lora_rank": 256, "qk_rope_head_dim": 32},
    "minimax": {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096, "max_position_embeddings": 131072},
    "minimax_m2": {"num_hidden_layers": 62, "num_attention_heads": 48, "num_key_value_heads": 8, "hidden_size": 3072, "head_dim": 128, "max_position_embeddings": 196608},
    "minimax_m3_vl_text": {"num_hidden_layers": 60, "num_attention_heads": 64, "num_key_value_heads": 4, "hidden_size": 6144, "head_dim": 128, "max_position_embeddings": 524288, "index_head_dim": 128},
    "ministral": {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096, "max_position_embeddings": 131072},
    "ministral3": {"num_hidden_layers": 34, "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096, "head_dim": 128, "max_position_embeddings": 262144},
    "mistral": {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096, "max_position_embeddings": 131072},
    "mixtral": {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096, "max_position_embeddings": 131072},
    "mllama_text_model": {"num_hidden_layers": 40, "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096, "max_position_embeddings": 131072},
    "modernbert-decoder": {"num_hidden_layers": 22, "num_attention_heads": 12, "hidden_size": 768, "max_position_embeddings": 8192},
    "moshi": {"num_hidden_layers": 32, "num_attention_heads": 32, "hidden_size": 4096, "max_position_embeddings": 3000},
    "mpt": {"n_layers": 24, "n_heads": 16, "d_model": 2048},
    "muse_glimmer_text": {"num_hidden_layers": 52, "num_attention_heads": 32, "num_key_value_heads": 2, "hidden_size": 6656, "head_dim": 128, "max_position_embeddings": 131072},
    "nanochat": {"num_hidden_layers": 12, "num_attention_heads": 6, "hidden_size": 768, "max_position_embeddings": 2048},
    "nemotron": {"num_hidden_layers": 32, "num_attention_heads": 48, "hidden_size": 6144, "max_position_embeddings": 4096},
    "nemotron_h": {"num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096, "head_dim": 128, "max_position_embeddings": 4096},
    "olmo": {"num_hidden_layers": 32, "num_attention_heads": 32, "hidden_size": 4096, "max_position_embeddings": 2048},
    "olmo2": {"num_hidden_layers": 32, "num_attention_heads": 32, "hidden_size": 4096, "max_position_embeddings": 2048},
    "olmo3": {"num_hidden_layers": 32, "num_attention_heads": 32, "hidden_size": 4096, "max_position_embeddings": 2048},
    "olmo_hybrid": {"num_hidden_layers": 32, "num_attention_heads": 30, "hidden_size": 3840, "max_position_embeddings": 65536},
    "olmoe": {"num_hidden_layers": 16, "num_attention_heads": 16, "hidden_size": 2048, "max_position_embeddings": 4096},
    "openai-gpt": {"n_layer": 12, "n_head": 12, "n_embd": 768, "n_positions": 512},
    "opt": {"num_hidden_layers": 12, "num_attention_heads": 12, "hidden_size": 768, "max_position_embeddings": 2048},
    "paddleocr_vl_text": {"num_hidden_layers": 18, "num_attention_heads": 16, "num_key_value_heads": 2, "hidden_size": 1024, "head_dim": 128, "max_position_embeddings": 131072},
    "persimmon": {"num_hidden_layers": 36, "num_attention_heads": 64, "hidden_size": 4096, "max_position_embeddings": 16384},
    "phi": {"num_hidden_layers": 24, "num_attention_heads": 32, "hidden_size": 2048, "max_position_embeddings": 2048},
    "phi3": {"num_hidden_layers": 32, "num_attention_heads": 32, "hidden_size": 3072, "max_position_embeddings": 4096},
    "phi4_multimodal": {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 3072, "max_position_embeddings": 131072},
    "phimoe": {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096, "max_position_embeddings": 131072},
    "qwen2": {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "hidden_size": 4096, "max_position_embeddings": 32768},
    "qwen2_5_omni_text": {"num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "hidden_size": 3584, "max_position_embeddings": 32768},
    "qwen2_5_vl_text": {"num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8, "hidden_size": 8192, "max_position_embeddings": 32768},
    "qwen2_moe": {"num_hidden_layers": 24, "num_attention_heads": 16, "num_key_value_heads": 16, "hidden_size": 2048, "max_position_embeddings": 32768},
    "qwen2_vl_text": {"num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8, "hidden_size": 8192, "max_position_embeddings": 32768},
    "qwen3": {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "hidden_size": 4096, "head_dim": 128, "max_position_embeddings": 32768},
    "qwen3_5_moe_text": {"num_hidden_layers": 40, "num_attention_heads": 16, "num_key_value_heads": 2, "hidden_size": 2048, "head_dim": 256, "max_position_embeddings": 32768},
    "qwen3_5_text": {"num_hidden_layers": 32, "num_attention_heads": 16, "num_key_value_heads": 4, "hidden_size": 4096, "head_dim": 256, "max_position_embeddings": 32768},
    "qwen3_moe": {"num_hidden_layers": 24, "num_attention_heads": 32, "num_key_value_heads": 4, "hidden_size": 2048, "max_position_embeddings": 32768},
    "qwen3_next": {"num_hidden_layers": 48, "num_attention_heads": 16, "num_key_value_heads": 2, "hidden_size": 2048, "head_dim": 256, "max_position_embeddings": 32768},
    "qwen3_omni_moe_talker_text": {"num_hidden_layers": 20, "num_attention_heads": 16, "num_key_value_heads": 2, "hidden_size": 1024, "max_position_embeddings": 32768},
    "qwen3_omni_moe_text": {"num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "hidden_size": 2048, "max_position_embeddings": 32768},
    "qwen3_vl_moe_text": {"num_hidden_layers": 24, "num_attention_heads": 16, "num_key_value_heads": 16, "hidden_size": 2048, "max_position_embeddings": 128000},
    "qwen3_vl_text": {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "hidden_size": 4096, "head_dim": 128, "max_position_embeddings": 128000},
    "qwen4_exp_text": {"num_hidden_layers": 40, "num_attention_heads": 16, "num_key_value_heads": 2, "hidden_size": 2048, "head_dim": 256, "max_position_embeddings": 32768},
    "recurrent_gemma": {"num_hidden_layers": 26, "num_attention_heads": 10, "hidden_size": 2560},
    "reformer": {"num_attention_heads": 12, "hidden_size": 256, "max_position_embeddings": 4096},
    "rwkv": {"num_hidden_layers": 32, "hidden_size": 4096},
    "seed_oss": {"num_hidden_layers": 64, "num_attention_heads": 80, "num_key_value_heads": 8, "hidden_size": 4096, "head_dim": 128, "max_position_embeddings": 524288},
    "smollm3": {"num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 4, "hidden_size": 2048, "max_position_embeddings": 32768},
    "solar_open": {"num_hidden_layers": 48, "num_attention_heads": 64, "num_key_value_heads": 8, "hidden_size": 4096, "head_dim": 128, "max_position_embeddings": 131072},
    "stablelm": {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "hidden_size": 2560, "max_position_embeddings": 4096},
    "starcoder2": {"num_hidden_layers": 30, "num_attention_heads": 24, "num_key_value_heads": 2, "hidden_size": 3072, "max_position_embeddings": 4096},
    "t5gemma2_text": {"num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4, "hidden_size": 2304, "head_dim": 256, "max_position_embeddings": 131072},
    "trocr": {"d_model": 1024, "max_position_embeddings": 512},
    "vaultgemma": {"num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4, "hidden_size": 2304, "head_dim": 256, "max_position_embeddings": 8192},
    "voxtral_realtime_text": {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096, "max_position_embeddings": 131072},
    "xglm": {"num_layers": 24, "attention_heads": 16, "d_model": 1024, "max_position_embeddings": 2048},
    "xlm": {"n_layers": 12, "n_heads": 16, "emb_dim": 2048, "max_position_embeddings": 512},
    "xlnet": {"n_layer": 24, "n_head": 16, "d_model": 1024},
    "xlstm": {"num_hidden_layers": 32, "num_heads": 8, "hidden_size": 4096},
    "youtu": {"num_hidden_layers": 32, "num_attention_heads": 16, "num_key_value_heads": 16, "hidden_size": 2048, "max_position_embeddings": 131072, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "v_head_dim": 128},
    "zamba": {"num_hidden_layers": 76, "num_attention_heads": 16, "num_key_value_heads": 16, "hidden_size": 3712, "max_position_embeddings": 4096, "attn_layer_period": 6, "attn_layer_offset": 4},
    "zamba2": {"num_hidden_layers": 54, "num_attention_heads": 32, "hidden_size": 2560, "max_position_embeddings": 4096},
    "zaya": {"num_hidden_layers": 40, "num_attention_heads": 8, "num_key_value_heads": 2, "hidden_size": 2048, "head_dim": 128, "max_position_embeddings": 131072},
}
MIXED = frozenset({"axk2", "bamba", "deepseek_v32", "deepseek_v4", "falcon_h1", "falcon_mamba", "glm5_next_text", "glm_moe_dsa", "granitemoehybrid", "hy_v4", "inkling_text", "jamba", "kimi_linear", "mamba", "mamba2", "minimax", "nemotron_h", "olmo_hybrid", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next", "qwen4_exp_text", "zamba", "zamba2", "zaya"})
# end generated
