# SPDX-License-Identifier: Apache-2.0
"""VAttentionCache in ``model.generate``, against the library's DynamicCache."""

from __future__ import annotations

import pytest
from tiny_models import LENGTHS, assert_same, dynamic, generate, left_padded, reference, torch

from pyvattn.integrations.transformers import VAttentionCache

NEW = 24


def open_cache(model, **options):
    options = {"max_batch": 4, "max_tokens": 128, "memory": "64MiB", **options}
    return VAttentionCache.for_model(model, **options)


@pytest.mark.parametrize("layout", ["layer", "token"])
def test_batch_of_unequal_prompts_is_token_exact(model, prompts, layout):
    inputs = left_padded(prompts)
    expected = reference(model, inputs)
    with open_cache(model, layout=layout) as cache:
        assert_same(generate(model, inputs, cache), expected)


def test_arenas_of_a_few_layers_are_token_exact(model, prompts):
    inputs = left_padded(prompts)
    expected = reference(model, inputs)
    with open_cache(model, layout="token", layers_per_arena=1) as cache:
        assert cache.kv.geometry.arenas == cache.kv.spec.layers > 1
        assert_same(generate(model, inputs, cache), expected)


def test_only_real_tokens_are_stored(llama, prompts):
    with open_cache(llama) as cache:
        generate(llama, left_padded(prompts), cache, max_new_tokens=NEW)
        # The last token that was generated is not run through the model.
        assert cache.lengths == tuple(length + NEW - 1 for length in LENGTHS)
        stored = sum(cache.lengths) * cache.kv.spec.token_bytes
        assert cache.kv.stats().bytes_used == stored
        assert cache.get_seq_length() == max(LENGTHS) + NEW - 1


def test_single_prompt_without_a_mask(model, prompts):
    inputs = {"input_ids": torch.tensor([prompts[3]])}
    expected = reference(model, inputs)
    with open_cache(model) as cache:
        assert_same(generate(model, inputs, cache), expected)


def test_sampling_with_a_seed(llama, prompts):
    inputs, options = left_padded(prompts), {"do_sample": True, "top_k": 20, "temperature": 1.5}
    torch.manual_seed(7)
    expected = reference(llama, inputs, **options)
    with open_cache(llama) as cache:
        torch.manual_seed(7)
        assert_same(generate(llama, inputs, cache, **options), expected)


def test_beam_search(model, prompts):
    inputs, options = left_padded(prompts), {"num_beams": 3, "num_return_sequences": 2}
    expected = reference(model, inputs, **options)
    with open_cache(model, max_batch=12) as cache:
        result = generate(model, inputs, cache, **options)
        assert torch.equal(result.sequences, expected.sequences)
        torch.testing.assert_close(
            result.sequences_scores, expected.sequences_scores, atol=1e-4, rtol=0
        )
        assert len(set(cache.slots)) == 12


def test_chunked_prefill(llama, prompts):
    inputs = left_padded(prompts)
    expected = reference(llama, inputs)
    with open_cache(llama) as cache:
        assert_same(generate(llama, inputs, cache, prefill_chunk_size=7), expected)


def test_assisted_decoding_crops(llama):
    inputs = {"input_ids": torch.tensor([[5, 6, 7, 8] * 6])}
    options = {"prompt_lookup_num_tokens": 4, "max_new_tokens": 40}
    expected = reference(llama, inputs, max_new_tokens=40)
    with open_cache(llama) as cache:
        result = generate(llama, inputs, cache, **options)
        assert torch.equal(result.sequences, expected.sequences)


def test_conversation_goes_on_in_the_same_cache(model, prompts):
    inputs = {"input_ids": torch.tensor([prompts[1]])}
    with open_cache(model) as cache:
        theirs = dynamic(model)
        for turn in (prompts[0], prompts[2]):
            expected = reference_turn(model, inputs, theirs)
            result = generate(model, inputs, cache)
            assert_same(result, expected)
            more = torch.tensor([turn])
            inputs = {"input_ids": torch.cat([result.sequences, more], dim=1)}


def reference_turn(model, inputs, cache):
    model.set_attn_implementation("sdpa")
    try:
        return generate(model, inputs, cache)
    finally:
        model.set_attn_implementation("pyvattn")


def test_reset_frees_the_slots_for_another_batch(llama, prompts):
    first, second = left_padded(prompts[:1]), left_padded(prompts)
    expected = reference(llama, second)
    with open_cache(llama) as cache:
        generate(llama, first, cache)
        cache.reset()
        assert cache.kv.stats().slots_live == 0
        assert cache.get_seq_length() == 0
        assert_same(generate(llama, second, cache), expected)


def test_close_releases_everything(llama, prompts):
    cache = open_cache(llama)
    generate(llama, left_padded(prompts), cache)
    cache.close()
    assert cache.kv.closed
    cache.close()


def test_a_cache_of_the_callers_stays_open(llama, prompts):
    with open_cache(llama) as owner:
        cache = VAttentionCache(owner.kv)
        generate(llama, left_padded(prompts), cache)
        cache.close()
        assert not owner.kv.closed
        assert owner.kv.stats().slots_live == 0


def test_two_caches_share_one_kvcache(llama, prompts):
    one, two = left_padded(prompts[:2]), left_padded(prompts[2:])
    expected = reference(llama, one), reference(llama, two)
    with open_cache(llama) as cache, VAttentionCache(cache.kv) as other:
        assert_same(generate(llama, one, cache), expected[0])
        assert_same(generate(llama, two, other), expected[1])
        assert not set(cache.slots) & set(other.slots)


def test_the_attention_is_the_librarys_with_any_other_cache(llama, prompts):
    inputs = left_padded(prompts)
    expected = reference(llama, inputs)
    llama.set_attn_implementation("pyvattn")
    result = generate(llama, inputs, dynamic(llama))
    assert all(map(torch.equal, result.logits, expected.logits))


def test_attention_reads_the_arena_and_copies_nothing(llama, prompts, monkeypatch):
    from pyvattn.attention import sdpa

    seen = []
    real = sdpa.scaled_dot_product_attention

    def spy(q, k, v, **options):
        seen.append((k, v))
        return real(q, k, v, **options)

    monkeypatch.setattr(sdpa, "scaled_dot_product_attention", spy)
    with open_cache(llama) as cache:
        arenas = [tensor for layer in range(3) for tensor in cache.kv.layer(layer)]
        generate(llama, left_padded(prompts), cache)
        starts = {arena[slot].data_ptr() for arena in arenas for slot in range(4)}
        assert seen
        assert all(k.data_ptr() in starts and v.data_ptr() in starts for k, v in seen)
        cache.reset()
