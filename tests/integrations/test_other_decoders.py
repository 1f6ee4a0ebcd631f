# SPDX-License-Identifier: Apache-2.0
"""Decoders out of families of encoders: BERT and its like, and the decoders of BART and Whisper."""

from __future__ import annotations

import pytest
from tiny_models import (
    VOCABULARY,
    dynamic,
    generate,
    left_padded,
    random_prompts,
    torch,
    transformers,
)

from pyvattn import errors
from pyvattn.integrations.transformers import VAttentionCache, generate_batch

pytestmark = pytest.mark.filterwarnings("ignore")

TOKENS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}
BERT = {
    **TOKENS,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "initializer_range": 0.2,
    "is_decoder": True,
}
EMU = {name: size for name, size in BERT.items() if name != "is_decoder"}
# The encoder's sizes are others.
WITH_AN_ENCODER = {
    **TOKENS,
    "d_model": 64,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 96,
    "init_std": 0.2,
}
POSITIONED = {
    "BertLMHeadModel": BERT,
    "RobertaForCausalLM": BERT,
    "ElectraForCausalLM": BERT,
    "XLMRobertaXLForCausalLM": BERT,
    "Emu3ForCausalLM": {**EMU, "num_key_value_heads": 2},
}
COUNTING = {
    "BartForCausalLM": WITH_AN_ENCODER,
    "MarianForCausalLM": {**WITH_AN_ENCODER, "decoder_start_token_id": 1},
    "WhisperForCausalLM": WITH_AN_ENCODER,
}
PROMPTS = (3, 17, 9)


def make(name, **changes):
    model_class = getattr(transformers, name)
    torch.manual_seed(1)
    sizes = {**POSITIONED, **COUNTING}[name]
    return model_class(model_class.config_class(**{**sizes, **changes})).eval()


@pytest.mark.parametrize("name", [*POSITIONED, *COUNTING])
def test_generate_gives_the_tokens_of_the_librarys_cache(name):
    model, inputs = make(name), left_padded(random_prompts(PROMPTS))
    expected = generate(model, inputs, dynamic(model), max_new_tokens=8).sequences
    with VAttentionCache.for_model(model, max_batch=3, max_tokens=64, memory="64MiB") as cache:
        assert cache.kv.spec.layers == 2
        assert torch.equal(generate(model, inputs, cache, max_new_tokens=8).sequences, expected)
    assert len(expected.unique()) > 20


@pytest.mark.parametrize("name", POSITIONED)
def test_batches_in_chunks_give_them_too(name):
    model, prompts = make(name), random_prompts(PROMPTS)
    expected = generate(model, left_padded(prompts), dynamic(model), max_new_tokens=8).sequences
    options = {"memory": "64MiB", "max_batch": 2, "max_prefill_tokens": 7}
    requests = generate_batch(model, prompts, max_new_tokens=8, **options)
    assert [request.output for request in requests] == expected[:, -8:].tolist()


@pytest.mark.parametrize("name", COUNTING)
def test_batches_are_refused_where_the_model_counts_positions(name):
    model = make(name)
    with pytest.raises(errors.UnsupportedError, match=f"{name} takes no position_ids"):
        generate_batch(model, random_prompts(PROMPTS), max_new_tokens=8, memory="64MiB")
    assert model.config._attn_implementation != "pyvattn"


def test_an_encoder_is_refused():
    model = make("BertLMHeadModel", is_decoder=False)
    with pytest.raises(errors.SpecError, match="are encoders"):
        VAttentionCache.for_model(model, max_batch=3, max_tokens=64, memory="64MiB")
