# SPDX-License-Identifier: Apache-2.0
"""Padding wherever it stands: rows hold real tokens only, and say what the library says."""

from __future__ import annotations

import pytest
from tiny_models import (
    LENGTHS,
    assert_same,
    dynamic,
    generate,
    left_padded,
    random_prompts,
    reference,
    torch,
)

from pyvattn.integrations.transformers import VAttentionCache


def open_cache(model, **options):
    options = {"max_batch": 4, "max_tokens": 128, "memory": "64MiB", **options}
    return VAttentionCache.for_model(model, **options)


def right_padded(prompts):
    longest = max(map(len, prompts))
    ids = [list(prompt) + [0] * (longest - len(prompt)) for prompt in prompts]
    mask = [[1] * len(prompt) + [0] * (longest - len(prompt)) for prompt in prompts]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def scattered(prompts, seed=5):
    """Padding at random places, also in front of a row and behind it."""
    generator = torch.Generator().manual_seed(seed)
    width = max(map(len, prompts)) + 7
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros(len(prompts), width, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        places = torch.randperm(width, generator=generator)[: len(prompt)].sort().values
        ids[row, places] = torch.tensor(prompt)
        mask[row, places] = 1
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def both(model, inputs, cache, theirs):
    """The logits of one forward pass, ours and the library's, where a token stands before."""
    positions = (inputs["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
    new = inputs["input_ids"].shape[1]
    positions = positions[:, -new:]
    model.set_attn_implementation("pyvattn")
    ours = model(**inputs, position_ids=positions, past_key_values=cache).logits
    model.set_attn_implementation("sdpa")
    expected = model(**inputs, position_ids=positions, past_key_values=theirs).logits
    started = inputs["attention_mask"].cumsum(dim=1)[:, -new:] > 0
    return ours[started], expected[started]


def assert_close(pair):
    torch.testing.assert_close(*pair, atol=1e-4, rtol=0)


@pytest.mark.parametrize("padded", [right_padded, scattered, left_padded])
def test_logits_of_a_padded_batch(model, prompts, padded):
    inputs = padded(prompts)
    with open_cache(model) as cache:
        assert_close(both(model, inputs, cache, dynamic(model)))
        assert cache.lengths == LENGTHS
        assert cache.kv.stats().bytes_used == sum(LENGTHS) * cache.kv.spec.token_bytes


@pytest.mark.parametrize("padded", [right_padded, scattered])
def test_generate_from_a_padded_batch(model, prompts, padded):
    inputs = padded(prompts)
    expected = reference(model, inputs)
    with open_cache(model) as cache:
        assert_same(generate(model, inputs, cache), expected)


def test_chunked_prefill_of_a_batch_padded_on_the_right(llama, prompts):
    inputs = right_padded(prompts)
    expected = reference(llama, inputs, prefill_chunk_size=7)
    with open_cache(llama) as cache:
        assert_same(generate(llama, inputs, cache, prefill_chunk_size=7), expected)


def test_a_mask_inferred_from_a_pad_token_inside_a_prompt(llama, prompts):
    row = [*prompts[1][:5], 0, *prompts[1][6:]]
    inputs = {"input_ids": torch.tensor([row])}
    expected = reference(llama, inputs)
    with open_cache(llama) as cache:
        assert_same(generate(llama, inputs, cache), expected)
        assert cache.lengths[0] == cache.get_seq_length() - 1


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_chat_whose_rows_have_unequal_turns(llama, prompts, side):
    """A row that ended early is padded with tokens that the next turn hides."""
    inputs = left_padded(prompts)
    with open_cache(llama) as cache:
        theirs = dynamic(llama)
        ours = generate(llama, inputs, cache, max_new_tokens=9).sequences
        llama.set_attn_implementation("sdpa")
        assert torch.equal(generate(llama, inputs, theirs, max_new_tokens=9).sequences, ours)
        answered = torch.ones(4, 9, dtype=torch.long)
        answered[1, 4:] = answered[2, 1:] = 0
        turn = (left_padded if side == "left" else right_padded)(random_prompts((5, 2, 8, 1), 9))
        ids = torch.cat([ours, turn["input_ids"]], dim=1)
        mask = torch.cat([inputs["attention_mask"], answered, turn["attention_mask"]], dim=1)
        more = {"input_ids": ids, "attention_mask": mask}
        expected = generate(llama, more, theirs)
        llama.set_attn_implementation("pyvattn")
        assert_same(generate(llama, more, cache), expected)
        assert cache.lengths == tuple((mask.sum(dim=1) + 23).tolist())


def test_what_is_hidden_in_the_middle_is_dropped(llama, prompts):
    inputs = left_padded(prompts)
    with open_cache(llama) as cache:
        theirs = dynamic(llama)
        assert_close(both(llama, inputs, cache, theirs))
        mask = torch.cat([inputs["attention_mask"], torch.ones(4, 2, dtype=torch.long)], dim=1)
        mask[3, 5:9] = mask[1, 30:32] = 0
        more = {"input_ids": torch.arange(5, 13).view(4, 2), "attention_mask": mask}
        assert_close(both(llama, more, cache, theirs))
        assert cache.lengths == tuple(mask.sum(dim=1).tolist())
        assert_close(both(llama, {**more, "attention_mask": extended(mask)}, cache, theirs))


def extended(mask):
    return torch.cat([mask, torch.ones(mask.shape[0], 2, dtype=mask.dtype)], dim=1)


def test_a_row_of_padding_only(llama, prompts):
    inputs = right_padded([*prompts[:2], []])
    with open_cache(llama) as cache:
        theirs = dynamic(llama)
        assert_close(both(llama, inputs, cache, theirs))
        assert cache.lengths == (3, 17, 0)
        mask = extended(inputs["attention_mask"])
        more = {"input_ids": torch.arange(5, 11).view(3, 2), "attention_mask": mask}
        assert_close(both(llama, more, cache, theirs))
