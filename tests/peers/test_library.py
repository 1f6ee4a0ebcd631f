# SPDX-License-Identifier: Apache-2.0
"""The library's common tests of models, with our cache in the place of its DynamicCache.

They run under torch.no_grad(), which many of them leave out: the cache carries no gradients.
Of each test that is carried, some forward pass must have gone through our cache.
"""

from __future__ import annotations

import unittest

import pytest
from library import our_cache
from tiny_models import torch, transformers

from pyvattn import errors

pytestmark = pytest.mark.filterwarnings("ignore")

SHAPE = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MULTI_HEAD = {name: value for name, value in SHAPE.items() if name != "num_key_value_heads"}
FAMILIES = {
    "Llama": SHAPE,
    "Qwen2": SHAPE,
    "Qwen3": {**SHAPE, "head_dim": 8},
    "Gemma": {**SHAPE, "head_dim": 8},
    "Mistral": {**SHAPE, "sliding_window": None},
    "Phi3": SHAPE,
    "GPTNeoX": MULTI_HEAD,
    "GPT2": {
        "vocab_size": 99,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 512,
        "attn_pdrop": 0.0,
    },
}

CARRIED = [
    "test_batching_equivalence",
    "test_can_capture_specific_layers_hidden_states",
    "test_determinism",
    "test_feed_forward_chunking",
    "test_hidden_states_output",
    "test_inputs_embeds",
    "test_inputs_embeds_matches_input_ids",
    "test_model_forward_default_config_values",
    "test_resize_embeddings_untied",
    "test_resize_tokens_embeddings",
    "test_save_load",
]
# What the cache refuses, and in which words.
REFUSED = {
    "test_capture_outputs_decorator": "cannot do output_attentions",
    "test_model_outputs_equivalence": "cannot do output_attentions",
    "test_training": "does not carry gradients",
}
# GPT-2 asks no attention for its weights, and returns none, as with the library's sdpa.
NOT_ASKED = {("test_capture_outputs_decorator", "GPT2"), ("test_model_outputs_equivalence", "GPT2")}


class Asked:
    """What the library's tests ask of the tester of a model, padded on the right as theirs."""

    batch_size, seq_length, encoder_seq_length, key_length = 13, 7, 7, 7
    num_hidden_layers, hidden_size, num_attention_heads, vocab_size = 2, 32, 4, 99
    is_training = True

    def __init__(self, library_tests, family):
        self._library_tests = library_tests
        self._family = family

    def get_config(self):
        return getattr(transformers, f"{self._family}Config")(**FAMILIES[self._family])

    def prepare_config_and_inputs_for_common(self):
        ids = self._library_tests.ids_tensor([13, 7], 99)
        mask = torch.ones(13, 7, dtype=torch.long).tril()
        return self.get_config(), {"input_ids": ids, "attention_mask": mask}


def run(library_tests, family, name):
    """Run one test of the library; returns how many caches of ours were filled."""
    base = transformers.GPT2LMHeadModel if family == "GPT2" else None
    causal = base or getattr(transformers, f"{family}ForCausalLM")
    classes = getattr(transformers, f"{family}Model"), causal

    class Case(library_tests.ModelTesterMixin, unittest.TestCase):
        all_model_classes = classes

        def setUp(self):
            self.model_tester = Asked(library_tests, family)

    torch.manual_seed(0)
    case = Case(name)
    case.setUp()
    with our_cache(*classes) as made, torch.set_grad_enabled(name == "test_training"):
        getattr(case, name)()
        return sum(cache.get_seq_length() > 0 for cache in made)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", CARRIED)
def test_carried(library_tests, family, name):
    try:
        assert run(library_tests, family, name) > 0
    except unittest.SkipTest as skipped:
        pytest.skip(f"the library skips it: {skipped}")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", REFUSED)
def test_refused(library_tests, family, name):
    if (name, family) in NOT_ASKED:
        assert run(library_tests, family, name) > 0
        return
    with pytest.raises(errors.UnsupportedError, match=REFUSED[name]):
        run(library_tests, family, name)
