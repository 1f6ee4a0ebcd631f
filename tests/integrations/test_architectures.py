# SPDX-License-Identifier: Apache-2.0
"""Models of other families through the engine: experts, norms of q and k, learned positions."""

from __future__ import annotations

import pytest
from tiny_models import VOCABULARY, left_padded, random_prompts, reference, torch, transformers

from pyvattn.integrations.transformers import generate_batch

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
}
FAMILIES = {
    "Qwen2": SHAPE,
    "Qwen3": {**SHAPE, "head_dim": 8},
    "Gemma": {**SHAPE, "head_dim": 8},
    "Mistral": {**SHAPE, "sliding_window": None},
    "Mixtral": {**SHAPE, "num_local_experts": 4},
    "Phi3": SHAPE,
    "Cohere": SHAPE,
    "Granite": SHAPE,
    "Olmo2": SHAPE,
    "GPTNeoX": {name: n for name, n in SHAPE.items() if name != "num_key_value_heads"},
    "OPT": {
        "hidden_size": 64,
        "word_embed_proj_dim": 64,
        "ffn_dim": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "init_std": 0.2,
    },
}


@pytest.mark.parametrize("family", FAMILIES)
def test_generate_batch_is_token_exact(family):
    config = getattr(transformers, f"{family}Config")(
        vocab_size=VOCABULARY,
        max_position_embeddings=512,
        initializer_range=0.2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=None,
        **FAMILIES[family],
    )
    torch.manual_seed(1)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    prompts = random_prompts((3, 17, 9))
    requests = generate_batch(
        model, prompts, max_new_tokens=12, memory="64MiB", max_batch=2, max_prefill_tokens=11
    )
    for request in requests:
        expected = reference(model, left_padded([request.prompt]), max_new_tokens=12).sequences
        assert request.output == expected[0, len(request.prompt) :].tolist()
