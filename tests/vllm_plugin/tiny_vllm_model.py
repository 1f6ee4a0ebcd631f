# SPDX-License-Identifier: Apache-2.0
"""A random Llama of two small layers with a tokenizer of single characters, as files.

vLLM's own dummy weights are so small that no token depends on any other: with them an engine
that reads the wrong blocks says the same. These are as large as those of a trained model. In
float32 no two tokens are as good as each other, so that every right kernel says the same.
"""

from __future__ import annotations

import json

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 1024,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "torch_dtype": "float32",
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def write_model(folder):
    """Write what vLLM reads of a model; return the folder's name."""
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    save_file(weights(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    special = ["<unk>", "<s>", "</s>"]
    words = special + [chr(0x4E00 + i) for i in range(CONFIG["vocab_size"] - len(special))]
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(str(folder))
    return str(folder)


def projections(config):
    """Yield the name, rows and columns of each matrix of a layer."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    queries, keys = (
        config[name] * config["head_dim"] for name in ("num_attention_heads", "num_key_value_heads")
    )
    yield "self_attn.q_proj", queries, hidden
    yield "self_attn.k_proj", keys, hidden
    yield "self_attn.v_proj", keys, hidden
    yield "self_attn.o_proj", hidden, queries
    yield "mlp.gate_proj", inner, hidden
    yield "mlp.up_proj", inner, hidden
    yield "mlp.down_proj", hidden, inner


def weights():
    """Return the tensors, by their names in a checkpoint."""
    import torch

    draw = torch.Generator().manual_seed(0)
    hidden, words = CONFIG["hidden_size"], CONFIG["vocab_size"]
    tensors = {"model.norm.weight": torch.ones(hidden)}

    def add(name, rows, columns):
        # What comes out is as large as what goes in.
        values = torch.randn(rows, columns, generator=draw) / columns**0.5
        tensors[f"{name}.weight"] = values

    add("model.embed_tokens", words, hidden)
    add("lm_head", words, hidden)
    for layer in (f"model.layers.{i}" for i in range(CONFIG["num_hidden_layers"])):
        for name, rows, columns in projections(CONFIG):
            add(f"{layer}.{name}", rows, columns)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{layer}.{norm}.weight"] = torch.ones(hidden)
    return tensors
