# SPDX-License-Identifier: Apache-2.0
"""What the cache cannot do is refused by name, and the cache stays usable."""

from __future__ import annotations

import copy

import pytest
from tiny_models import assert_same, dynamic, generate, left_padded, make_llama, reference, torch

from pyvattn import CacheSpec, KVCache, LayerGroup, errors
from pyvattn.integrations.transformers import VAttentionCache, spec_for


@pytest.fixture
def cache(llama):
    options = {"max_batch": 4, "max_tokens": 128, "memory": "64MiB"}
    with VAttentionCache.for_model(llama, **options) as cache:
        yield cache


@pytest.fixture
def still_usable(llama, prompts, cache):
    """After the test, a batch must come out right in the same cache."""
    yield
    cache.reset()
    assert cache.kv.stats().slots_live == 0
    llama.set_attn_implementation("pyvattn")
    inputs = left_padded(prompts)
    assert_same(generate(llama, inputs, cache), reference(llama, inputs))


pytestmark = pytest.mark.usefixtures("still_usable")


def test_another_attention_implementation(llama, prompts, cache):
    llama.set_attn_implementation("sdpa")
    with pytest.raises(errors.UnsupportedError, match="set_attn_implementation"):
        generate(llama, left_padded(prompts), cache)


def test_a_mask_that_shows_what_was_padding(llama, prompts, cache):
    inputs = left_padded(prompts)
    result = generate(llama, inputs, cache)
    mask = torch.ones_like(result.sequences)
    with pytest.raises(errors.UnsupportedError, match="shows tokens that an earlier mask hid"):
        generate(llama, {"input_ids": result.sequences, "attention_mask": mask}, cache)


@torch.no_grad()
def test_a_custom_4d_mask(llama, cache):
    ids = torch.arange(5, 9)[None]
    mask = torch.ones(1, 1, 4, 4, dtype=torch.bool).tril()
    with pytest.raises(errors.UnsupportedError, match=r"\[batch, tokens\]"):
        llama(ids, attention_mask=mask, past_key_values=cache)


@torch.no_grad()
def test_a_mask_that_is_too_short(llama, cache):
    ids = torch.arange(5, 9)[None]
    llama(ids, past_key_values=cache)
    with pytest.raises(errors.TensorError, match="4 tokens seen and the 4 new ones"):
        llama(ids, attention_mask=torch.ones(1, 5), past_key_values=cache)


@torch.no_grad()
def test_another_batch_without_a_reset(llama, cache):
    llama(torch.ones(2, 3, dtype=torch.long), past_key_values=cache)
    with pytest.raises(errors.TensorError, match=r"batch of 3 .* 2 rows .* reset\(\)"):
        llama(torch.ones(3, 3, dtype=torch.long), past_key_values=cache)


def test_more_rows_than_slots(llama, prompts, cache):
    with pytest.raises(errors.OutOfSlots):
        generate(llama, left_padded([*prompts, [5]]), cache)
    assert cache.kv.stats().slots_live == 0


def test_a_prompt_longer_than_a_slot(llama, cache):
    with pytest.raises(errors.LengthError, match="129"):
        generate(llama, left_padded([[5] * 129, [6]]), cache)
    assert cache.kv.stats().slots_live == 0


def test_generating_past_the_end_of_a_slot(llama, cache):
    with pytest.raises(errors.LengthError):
        generate(llama, left_padded([[5] * 120]), cache, max_new_tokens=20)
    assert cache.lengths == (128,)


def test_gradients(llama, cache):
    with pytest.raises(errors.UnsupportedError, match="no_grad"):
        llama(torch.arange(5, 9)[None], past_key_values=cache)


def test_a_copy_where_there_are_no_slots_left(llama, prompts, cache):
    generate(llama, left_padded(prompts), cache)
    with pytest.raises(errors.OutOfSlots):
        copy.deepcopy(cache)
    assert cache.kv.stats().slots_live == 4


def test_attention_weights(llama, prompts, cache):
    with pytest.raises((errors.UnsupportedError, ValueError), match="output_attentions"):
        generate(llama, left_padded(prompts), cache, output_attentions=True)


def test_dropout(llama, cache):
    llama.config.attention_dropout = 0.5
    for module in llama.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    llama.train()
    with torch.no_grad(), pytest.raises(errors.UnsupportedError, match="eval"):
        llama(torch.arange(5, 9)[None], past_key_values=cache)
    llama.eval()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"layer_types": ["deepseek_sparse_attention"] * 3},
            "deepseek_sparse_attention",
        ),
    ],
)
def test_layers_that_the_cache_does_not_hold(llama, monkeypatch, changes, message):
    for name, value in changes.items():
        monkeypatch.setattr(llama.config, name, value, raising=False)
    with pytest.raises(errors.UnsupportedError, match=message):
        spec_for(llama, max_slots=1, max_tokens=64)


@torch.no_grad()
def test_a_layer_that_fails_halfway_counts_no_token(llama, prompts, cache, monkeypatch):
    inputs = left_padded(prompts)
    theirs = dynamic(llama)
    llama(**inputs, past_key_values=theirs)
    llama(**inputs, past_key_values=cache)
    lengths, step = cache.lengths, {"input_ids": torch.full((4, 1), 9)}
    step["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones(4, 1)], dim=1)
    step["position_ids"] = step["attention_mask"].long().sum(dim=1, keepdim=True) - 1

    def fail(*_, **__):
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(llama.model.layers[1].mlp, "forward", fail)
        with pytest.raises(ZeroDivisionError):
            llama(**step, past_key_values=cache)
    assert cache.lengths == lengths
    ours = llama(**step, past_key_values=cache).logits
    torch.testing.assert_close(
        ours, llama(**step, past_key_values=theirs).logits, atol=1e-4, rtol=0
    )


def test_out_of_memory_leaves_the_cache_usable(llama, prompts):
    inputs = left_padded([[5] * 900] * 4)
    small = {"max_batch": 4, "max_tokens": 1024, "memory": "1MiB", "page_size": "64K"}
    with VAttentionCache.for_model(llama, layout="token", **small) as cache:
        with pytest.raises(errors.OutOfMemory):
            generate(llama, inputs, cache)
        assert cache.kv.stats().slots_live == 4
        cache.reset()
        inputs = left_padded(prompts)
        assert_same(generate(llama, inputs, cache), reference(llama, inputs))


def test_models_of_another_dtype_get_a_cache_of_it():
    model = make_llama().to(torch.bfloat16)
    assert spec_for(model, max_slots=1, max_tokens=64).dtype == "bfloat16"


def test_rings_are_refused_before_a_pass_begins():
    group = LayerGroup([0, 1], kv_heads=2, head_dim=16, window=64, ring=True)
    spec = CacheSpec(groups=[group], dtype="float32", max_slots=1, max_tokens=100_000)
    with (
        KVCache(spec, device="cpu", memory="16MiB", layout="layer", page_size="64K") as kv,
        pytest.raises(errors.UnsupportedError, match=r"ring=False"),
    ):
        VAttentionCache(kv)
