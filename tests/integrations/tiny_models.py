# SPDX-License-Identifier: Apache-2.0
"""Small seeded models with random weights: wide enough that tokens vary, fast enough for CI.

A test module that imports this one is skipped where torch or transformers is missing.
"""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the transformers integration needs torch")
transformers = pytest.importorskip(
    "transformers", reason="the transformers integration needs transformers"
)

# Small tensors gain nothing from threads, and test workers share the cores.
torch.set_num_threads(1)

VOCABULARY = 97
LENGTHS = (3, 17, 9, 40)


def make_llama(**changes):
    """A Llama whose 8 query heads share 2 KV heads."""
    options = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": None,
    }
    torch.manual_seed(1)
    config = transformers.LlamaConfig(**{**options, **changes})
    return transformers.LlamaForCausalLM(config).eval()


def make_gpt2():
    """A GPT-2: 4 heads with K and V of their own, learned positions."""
    torch.manual_seed(2)
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=64,
        n_layer=2,
        n_head=4,
        n_positions=512,
        initializer_range=0.2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=None,
    )
    return transformers.GPT2LMHeadModel(config).eval()


def random_prompts(lengths=LENGTHS, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randint(2, VOCABULARY, (length,), generator=generator).tolist() for length in lengths
    ]


def left_padded(prompts):
    """Return the batch as tokenizers make it for generation."""
    longest = max(map(len, prompts))
    ids = [[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def generate(model, inputs, cache, **options):
    """Generate greedily unless told otherwise, with logits."""
    options = {"max_new_tokens": 24, "do_sample": False, **options}
    return model.generate(
        **inputs,
        past_key_values=cache,
        output_logits=True,
        return_dict_in_generate=True,
        **options,
    )


def dynamic(model):
    return transformers.DynamicCache(config=model.config)


def reference(model, inputs, attention="sdpa", **options):
    """What the library generates with its own cache and attention."""
    before = model.config._attn_implementation
    model.set_attn_implementation(attention)
    try:
        return generate(model, inputs, dynamic(model), **options)
    finally:
        model.set_attn_implementation(before)


def assert_same(result, expected):
    """Tokens are equal, logits within 1e-4, and the model said more than one thing."""
    assert torch.equal(result.sequences, expected.sequences)
    assert len(expected.sequences.unique()) > 20
    for ours, theirs in zip(result.logits, expected.logits, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
