# SPDX-License-Identifier: Apache-2.0
"""Models that attend with code of their own, to the cache's rows as views of them."""

from __future__ import annotations

import copy

import pytest
from test_models import GROUPED, SMALL
from tiny_models import (
    VOCABULARY,
    assert_same,
    dynamic,
    generate,
    left_padded,
    random_prompts,
    torch,
    transformers,
)

from pyvattn import errors
from pyvattn.integrations.transformers import VAttentionCache, generate_batch
from pyvattn.integrations.transformers.switch import attends_itself

pytestmark = pytest.mark.filterwarnings("ignore")

WINDOW = 8
ROOM = {"max_batch": 4, "max_tokens": 256, "memory": "64MiB", "strict": True}
LEARNED = {"n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 8, "initializer_range": 0.2}
BLOOM = {"hidden_size": 64, "n_layer": 2, "n_head": 4, "initializer_range": 0.2}
JAPANESE = {name: size for name, size in SMALL.items() if name != "intermediate_size"}
FAMILIES = {
    "GPTJ": LEARNED,
    "Bloom": BLOOM,
    # Its code takes no views.
    "GPTNeoXJapanese": JAPANESE,
    # Attends twice in a layer.
    "DiffLlama": {**SMALL, **GROUPED},
    # Makes a mask of cached values.
    "Doge": {**SMALL, **GROUPED, "keep_window_size": 64},
    # Its prompts see all of themselves, and tokens after them a window.
    "Moshi": {**SMALL, "num_key_value_heads": 2, "ffn_dim": 96, "sliding_window": WINDOW},
}
TOKENS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}
PROMPTS = random_prompts((3, 2 * WINDOW + 3, 9, 40))


def make(family):
    torch.manual_seed(1)
    config = getattr(transformers, f"{family}Config")(**{**FAMILIES[family], **TOKENS})
    return getattr(transformers, f"{family}ForCausalLM")(config).eval()


@pytest.fixture(params=FAMILIES)
def model(request):
    model = make(request.param)
    if not attends_itself(model):
        release = transformers.__version__
        pytest.skip(f"transformers {release} gives {request.param} its attention interface")
    return model


@pytest.fixture
def bloom():
    return make("Bloom")


@pytest.mark.parametrize("options", [{}, {"prefill_chunk_size": 7}, {"num_beams": 3}])
def test_tokens_are_the_librarys(model, options):
    inputs = left_padded(PROMPTS if "num_beams" not in options else PROMPTS[:1])
    expected = generate(model, inputs, dynamic(model), **options)
    before = model.config._attn_implementation
    with VAttentionCache.for_model(model, **ROOM) as cache:
        result = generate(model, inputs, cache, **options)
        assert model.config._attn_implementation == before
    if options.get("num_beams"):
        assert torch.equal(result.sequences, expected.sequences)
    else:
        assert_same(result, expected)


def test_what_attention_reads_is_the_cache_itself(bloom):
    with VAttentionCache.for_model(bloom, **ROOM) as cache:
        generate(bloom, left_padded(PROMPTS), cache, max_new_tokens=3)
        new = torch.randn(4, 4, 1, 16)
        k, v = cache.update(new, new, 0)
        first = [tensor[cache.slots[0].index] for tensor in cache.kv.layer(0)]
        assert [k.data_ptr(), v.data_ptr()] == [tensor.data_ptr() for tensor in first]
        assert torch.equal(k[:, :, -1:], new)
        # Padding is stored as well.
        assert cache.lengths == (42,) * 4
        assert k.shape == (4, 4, 43, 16)


def test_a_layer_with_a_window_keeps_and_shows_no_more():
    model, prompt = make("Moshi"), torch.tensor([PROMPTS[3]])
    theirs = dynamic(model)
    with torch.no_grad(), VAttentionCache.for_model(model, **ROOM) as cache:
        assert cache.kv.spec.windows == (WINDOW,)
        model(prompt, past_key_values=theirs)
        model(prompt, past_key_values=cache)
        assert cache.is_sliding == theirs.is_sliding == [True, True]
        for new in (1, 5):
            assert cache.get_mask_sizes(new, 0) == theirs.get_mask_sizes(new, 0)
        with pytest.raises(errors.UnsupportedError, match="keeps a window"):
            cache.read_layer(0)
        with pytest.raises(errors.UnsupportedError, match=r"crop\(\) needs tokens from before"):
            cache.crop(-1)


def test_assisted_decoding_crops(bloom):
    inputs = {"input_ids": torch.tensor([[5, 6, 7, 8] * 6])}
    options = {"prompt_lookup_num_tokens": 4, "max_new_tokens": 40}
    expected = bloom.generate(**inputs, do_sample=False, max_new_tokens=40)
    with VAttentionCache.for_model(bloom, **ROOM) as cache:
        result = generate(bloom, inputs, cache, **options)
        assert torch.equal(result.sequences, expected)


@torch.no_grad()
def test_a_saved_prompt_goes_on_twice(bloom):
    prompt, turns = torch.tensor([PROMPTS[1]]), torch.tensor([[5, 6, 7], [8, 9, 10]])
    theirs = dynamic(bloom)
    with VAttentionCache.for_model(bloom, **ROOM) as cache:
        for saved in (theirs, cache):
            bloom(prompt, past_key_values=saved)
        for turn in turns:
            ours = bloom(turn[None], past_key_values=copy.deepcopy(cache)).logits
            expected = bloom(turn[None], past_key_values=copy.deepcopy(theirs)).logits
            torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_pass_that_failed_halfway_is_run_again(bloom, monkeypatch):
    prompt, other = torch.tensor([PROMPTS[1]]), torch.tensor([[5, 6, 7]])
    theirs = dynamic(bloom)
    bloom(prompt, past_key_values=theirs)

    def fail(*_, **__):
        raise ZeroDivisionError

    with VAttentionCache.for_model(bloom, **ROOM) as cache:
        bloom(prompt, past_key_values=cache)
        with monkeypatch.context() as patch:
            patch.setattr(bloom.transformer.h[1].mlp, "forward", fail)
            patch.setattr(bloom.transformer.h[0].mlp, "forward", fail)
            for ids in (other, other[:, :2]):
                with pytest.raises(ZeroDivisionError):
                    bloom(ids, past_key_values=cache)
        assert cache.lengths == (len(PROMPTS[1]),)
        ours = bloom(other, past_key_values=cache).logits
        expected = bloom(other, past_key_values=theirs).logits
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


def test_layers_that_attend_to_something_else_are_refused(bloom):
    new = torch.randn(1, 4, 3, 16)
    with VAttentionCache.for_model(bloom, **{**ROOM, "max_batch": 1}) as cache:
        with pytest.raises(errors.TensorError, match=r"value_states.*pass a tensor of"):
            cache.update(new, new[0], 0)
        assert not cache.slots
        cache.update(new, new, 0)
        with pytest.raises(errors.UnsupportedError, match="layer 1 attends more than once"):
            cache.update(new[:, :, :2], new[:, :, :2], 1)


def test_float8_is_widened_to_what_the_model_computes_in(bloom):
    inputs = left_padded(PROMPTS)
    theirs = dynamic(bloom)
    generate(bloom, inputs, theirs, max_new_tokens=2)
    with VAttentionCache.for_model(bloom, kv_dtype="float8_e4m3fn", **ROOM) as cache:
        generate(bloom, inputs, cache, max_new_tokens=2)
        shown = cache.read_layer(0)
    for ours, expected in zip(shown, (theirs.layers[0].keys, theirs.layers[0].values), strict=True):
        torch.testing.assert_close(ours, expected, rtol=0.07, atol=0.02)


def test_batches_of_requests_are_refused_before_anything_runs(model):
    ran = []
    model.register_forward_pre_hook(lambda *_: ran.append(1))
    before, name = model.config._attn_implementation, type(model).__name__
    with pytest.raises(errors.UnsupportedError, match=f"{name} attends with code of its own"):
        generate_batch(model, [[5, 6, 7]], max_new_tokens=3, memory="64MiB")
    assert not ran
    assert model.config._attn_implementation == before


def test_a_model_without_a_cache_is_refused():
    config = transformers.OpenAIGPTConfig(vocab_size=VOCABULARY, n_embd=64, n_layer=2, n_head=4)
    model = transformers.OpenAIGPTLMHeadModel(config)
    with pytest.raises(errors.UnsupportedError, match="'openai-gpt' take no cache"):
        VAttentionCache.for_model(model, **ROOM)
