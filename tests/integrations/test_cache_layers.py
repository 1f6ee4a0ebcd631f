# SPDX-License-Identifier: Apache-2.0
"""What the layers of a VAttentionCache show, against those of DynamicCache."""

from __future__ import annotations

import copy
import gc

import pytest
from tiny_models import assert_same, dynamic, generate, left_padded, reference, torch

from pyvattn import errors
from pyvattn.integrations.transformers import VAttentionCache


@pytest.fixture(params=["equal", "padded"])
def inputs(request, prompts):
    rows = [prompt[:3] for prompt in prompts] if request.param == "equal" else prompts
    return left_padded(rows)


@pytest.fixture
def pair(llama, inputs):
    """A cache and a DynamicCache that have both seen the inputs."""
    theirs = dynamic(llama)
    options = {"max_batch": 9, "max_tokens": 128, "memory": "64MiB"}
    with torch.no_grad(), VAttentionCache.for_model(llama, **options) as ours:
        for cache in (ours, theirs):
            llama(**inputs, past_key_values=cache)
        yield ours, theirs


def assert_layers_equal(ours, theirs, mask):
    real = mask.bool()[:, None, :, None]
    for mine, other in zip(ours.layers, theirs.layers, strict=True):
        assert mine.is_initialized
        assert mine.get_seq_length() == other.get_seq_length()
        for name in ("keys", "values"):
            has, wanted = getattr(mine, name), getattr(other, name)
            torch.testing.assert_close(has, wanted * real, atol=1e-4, rtol=0)


def test_keys_and_values(pair, inputs):
    assert_layers_equal(*pair, inputs["attention_mask"])


def test_iteration(pair, inputs):
    ours, theirs = pair
    real = inputs["attention_mask"][:, None, :, None]
    assert len(list(ours)) == 3
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine[0], other[0] * real, atol=1e-4, rtol=0)
        torch.testing.assert_close(mine[1], other[1] * real, atol=1e-4, rtol=0)
        assert mine[2] is other[2] is None


@pytest.mark.parametrize("inputs", ["equal"], indirect=True)
def test_keys_of_whole_rows_are_the_cache_itself(pair):
    ours, _ = pair
    ours.layers[1].keys[2, 0, 1] = 7
    assert (ours.kv.layer(1)[0][int(ours.slots[2]), 1, 0] == 7).all()


def test_before_the_first_pass_and_after_a_reset_there_is_nothing(pair):
    ours, _ = pair
    ours.reset()
    for layer in ours.layers:
        assert (layer.keys, layer.values, layer.is_initialized) == (None, None, False)
    assert [each[0] for each in ours] == [None] * 3


def test_keys_cannot_be_replaced(pair):
    ours, _ = pair
    for name in ("keys", "values"):
        with pytest.raises(errors.UnsupportedError, match=rf"{name} .*use crop\(\)"):
            setattr(ours.layers[0], name, torch.zeros(1))


CHANGES = [
    ("crop", -2),
    ("reorder_cache", torch.tensor([1, 1, 0, 3])),
    ("batch_select_indices", torch.tensor([3, 0])),
    ("batch_repeat_interleave", 2),
]


@pytest.mark.parametrize(("name", "argument"), CHANGES)
def test_a_change_of_every_layer(llama, pair, inputs, name, argument):
    mask = inputs["attention_mask"]
    if name == "crop":
        mask = mask[:, :argument]
    elif name == "batch_repeat_interleave":
        mask = mask.repeat_interleave(argument, dim=0)
    else:
        mask = mask[argument]
    ours, theirs = pair
    for cache in pair:
        for layer in cache.layers:
            getattr(layer, name)(argument)
    assert_layers_equal(ours, theirs, mask)
    more = {"input_ids": torch.full((len(mask), 1), 9)}
    more["attention_mask"] = torch.cat([mask, torch.ones(len(mask), 1)], dim=1)
    logits = [llama(**more, past_key_values=cache).logits for cache in pair]
    torch.testing.assert_close(*logits, atol=1e-4, rtol=0)


def test_a_change_of_some_layers_only(llama, pair):
    ours, _ = pair
    ours.layers[0].crop(-1)
    ours.layers[2].crop(-1)
    with pytest.raises(errors.UnsupportedError, match=r"crop\(-1,\) did not reach layers \[1\]"):
        llama(torch.full((4, 1), 9), past_key_values=ours)
    with pytest.raises(errors.UnsupportedError, match=r"layer 1 got crop\(-2,\)"):
        ours.layers[1].crop(-2)
    ours.layers[1].crop(-1)
    llama(torch.full((4, 1), 9), past_key_values=dynamic(llama))


def test_a_saved_prompt_is_started_from_again(llama, prompts):
    """A prompt is run once and copied for each of its continuations."""
    shared = prompts[3]
    options = {"max_batch": 2, "max_tokens": 128, "memory": "64MiB"}
    with VAttentionCache.for_model(llama, **options) as saved:
        with torch.no_grad():
            llama(torch.tensor([shared]), past_key_values=saved)
        for turn in prompts[:3]:
            inputs = {"input_ids": torch.tensor([shared + turn])}
            again = copy.deepcopy(saved)
            assert_same(generate(llama, inputs, again), reference(llama, inputs))
            assert saved.lengths == (len(shared),)
            # Nothing closes the copy: its slot is back when it is dropped.
            del again
            gc.collect()
            assert saved.kv.stats().slots_live == 1


def test_a_copy_has_tokens_of_its_own(pair, inputs):
    ours, theirs = pair
    again = copy.deepcopy(ours)
    ours.crop(-3)
    ours.kv.layer(0)[0][[int(slot) for slot in ours.slots]] = 5
    assert_layers_equal(again, theirs, inputs["attention_mask"])
    again.close()
    assert not ours.kv.closed
