# SPDX-License-Identifier: Apache-2.0
"""Every causal language model of the library, small: token for token, or refused by name.

Each goes through both, ``generate`` with our cache and ``generate_batch``.

A family that the cache refuses is listed in ``refused.py`` with the reason. One that is
neither exact nor listed fails, and so does one that is listed and works.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from refused import REFUSED, REFUSED_IN_BATCHES
from tiny_models import (
    VOCABULARY,
    dynamic,
    generate,
    left_padded,
    random_prompts,
    torch,
    transformers,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from pyvattn import errors
from pyvattn.integrations.transformers import VAttentionCache, generate_batch

pytestmark = pytest.mark.filterwarnings("ignore")

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
    **dict.fromkeys(("intermediate_size", "ffn_dim", "ffn_hidden_size"), 96),
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
    "layer_types": ["full_attention"] * 2,
    "is_decoder": True,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
MOST_PARAMETERS = 3_000_000
FAMILIES = sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()))


def make(family):
    """Return a small model of ``family``, or skip where these sizes make none."""
    try:
        model_class = getattr(transformers, family)
    except Exception as error:
        pytest.skip(f"{family} cannot be imported: {type(error).__name__}")
    config_class = model_class.config_class
    known = getattr(config_class, "__dataclass_fields__", {})
    aliases = getattr(config_class, "attribute_map", {})
    sizes = {
        name: size
        for name, size in SIZES.items()
        if name in known or (name in aliases and aliases[name] not in SIZES)
    }
    if "qk_rope_head_dim" in sizes:
        # Latent vectors become as many K and V heads as there are query heads, and rotary
        # frequencies are for a part of a head, whose width the class knows.
        sizes["num_key_value_heads"] = sizes.get("num_attention_heads")
        sizes.pop("head_dim", None)
    if "sliding_window" in sizes and "layer_types" not in known:
        # There every layer would have the window.
        sizes["sliding_window"] = None
    try:
        config = config_class(**sizes)
        with torch.device("meta"):
            count = sum(each.numel() for each in model_class(config).parameters())
        if count > MOST_PARAMETERS:
            pytest.skip(f"{family} is not small with these sizes: {count:,} parameters")
        torch.manual_seed(1)
        return model_class(config).eval()
    except Exception as error:
        pytest.skip(f"{family} cannot be made with these sizes: {type(error).__name__}")


def outcome(model, inputs):
    """What our cache generates."""
    with VAttentionCache.for_model(model, max_batch=3, max_tokens=64, memory="64MiB") as cache:
        result = generate(model, inputs, cache, max_new_tokens=6)
        assert cache.lengths == (8, 22, 14)
        return result.sequences


def batched(model, prompts):
    """What requests that join and leave get, their prompts in chunks, as rows."""
    options = {"memory": "64MiB", "max_batch": 2, "max_prefill_tokens": 11}
    requests = generate_batch(model, prompts, max_new_tokens=6, **options)
    return torch.tensor([request.output for request in requests])


def assert_refused(model, prompts, reason):
    """Both say so in an error of ours."""
    with pytest.raises(errors.Error, match=reason):
        outcome(model, left_padded(prompts))
    with pytest.raises(errors.Error, match=reason):
        batched(model, prompts)


@pytest.mark.parametrize("family", FAMILIES)
def test_exact_or_refused(family):
    model = make(family)
    prompts = random_prompts((3, 17, 9))
    inputs = left_padded(prompts)
    if family in REFUSED:
        assert_refused(model, prompts, REFUSED[family])
        return
    try:
        expected = generate(model, inputs, dynamic(model), max_new_tokens=6).sequences
    except Exception:
        # What the library's own cache cannot do either.
        assert_refused(model, prompts, "")
        return
    assert torch.equal(outcome(model, inputs), expected)
    if family in REFUSED_IN_BATCHES:
        with pytest.raises(errors.UnsupportedError, match=REFUSED_IN_BATCHES[family]):
            batched(model, prompts)
    else:
        assert torch.equal(batched(model, prompts), expected[:, -6:])
    assert len(expected.unique()) > 20


def test_the_guide_counts_those_that_are_refused():
    assert set(REFUSED) | set(REFUSED_IN_BATCHES) <= set(FAMILIES)
    guide = Path(__file__).parents[2] / "docs/transformers.md"
    text = " ".join(guide.read_text(encoding="utf-8").split())
    said = f"Of its {len(FAMILIES)} causal classes {len(REFUSED)} are listed as refused, and "
    assert f"{said}{len(REFUSED_IN_BATCHES)} more in continuous batching alone" in text
