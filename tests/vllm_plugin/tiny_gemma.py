# SPDX-License-Identifier: Apache-2.0
"""A random Gemma 3 of small layers, as files: by default five, two of them with full attention.

Of those vLLM makes three groups with a block table each: the two, and the three with a sliding
window, which is no whole number of blocks. The last has a layer less than a block has room for.
"""

from __future__ import annotations

import json

from tiny_vllm_model import projections

WINDOW = 100
BLOCK_SIZE = 32
LAYERS = (
    "sliding_attention",
    "sliding_attention",
    "full_attention",
    "sliding_attention",
    "full_attention",
)
CONFIG = {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "hidden_size": 256,
    "intermediate_size": 512,
    "sliding_window": WINDOW,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "query_pre_attn_scalar": 64,
    "vocab_size": 1024,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "torch_dtype": "float32",
    "hidden_activation": "gelu_pytorch_tanh",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# Embeddings are the last layer too: small ones leave more to attention than to the last token.
_EMBEDDINGS = 0.1


def write_gemma(folder, layers=LAYERS):
    """Write what vLLM reads of a model that has no tokenizer; return the folder's name."""
    from safetensors.torch import save_file

    save_file(_weights(len(layers)), folder / "model.safetensors")
    config = {**CONFIG, "num_hidden_layers": len(layers), "layer_types": list(layers)}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def _weights(layers):
    import torch

    draw = torch.Generator().manual_seed(0)
    hidden, words, head = (CONFIG[n] for n in ("hidden_size", "vocab_size", "head_dim"))

    def matrix(rows, columns):
        # What comes out is as large as what goes in.
        return torch.randn(rows, columns, generator=draw) / columns**0.5

    weights = {
        "model.embed_tokens.weight": _EMBEDDINGS * matrix(words, hidden),
        "model.norm.weight": torch.zeros(hidden),
    }
    for layer in (f"model.layers.{i}" for i in range(layers)):
        for name, rows, columns in projections(CONFIG):
            weights[f"{layer}.{name}.weight"] = matrix(rows, columns)
        for norm in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            weights[f"{layer}.{norm}_layernorm.weight"] = torch.zeros(hidden)
        # As large as those of a trained model, so that some tokens are attended to more.
        for norm in ("q_norm", "k_norm"):
            weights[f"{layer}.self_attn.{norm}.weight"] = torch.full((head,), 0.5)
    return weights
