# SPDX-License-Identifier: Apache-2.0
"""The parts of the library's Cache API that move rows and lengths, against DynamicCache."""

from __future__ import annotations

import pytest
from tiny_models import dynamic, left_padded, torch

from pyvattn.errors import TensorError
from pyvattn.integrations.transformers import VAttentionCache

PAST = 40


@pytest.fixture
def pair(llama, prompts):
    """A cache and a DynamicCache that have both seen the prompts, and the mask so far."""
    inputs = left_padded(prompts)
    theirs = dynamic(llama)
    options = {"max_batch": 8, "max_tokens": 128, "memory": "64MiB"}
    with torch.no_grad(), VAttentionCache.for_model(llama, **options) as ours:
        for cache in (ours, theirs):
            llama(**inputs, past_key_values=cache)
        yield ours, theirs, inputs["attention_mask"]


def assert_next_logits_equal(llama, ours, theirs, mask):
    """Run one more token for every row through both."""
    rows = mask.shape[0]
    inputs = {
        "input_ids": torch.arange(5, 5 + rows)[:, None],
        "attention_mask": torch.cat([mask, torch.ones(rows, 1, dtype=mask.dtype)], dim=1),
    }
    inputs["position_ids"] = inputs["attention_mask"].sum(dim=1, keepdim=True) - 1
    logits = [llama(**inputs, past_key_values=cache).logits for cache in (ours, theirs)]
    torch.testing.assert_close(logits[0], logits[1], atol=1e-4, rtol=0)
    assert ours.get_seq_length() == theirs.get_seq_length() == mask.shape[1] + 1


@pytest.mark.parametrize("order", [[3, 2, 1, 0], [0, 0, 3, 3], [2, 2, 2, 2], [1, 0, 0, 1]])
def test_reorder(llama, pair, order):
    ours, theirs, mask = pair
    for cache in (ours, theirs):
        cache.reorder_cache(torch.tensor(order))
    assert len(set(ours.slots)) == 4
    assert_next_logits_equal(llama, ours, theirs, mask[order])


@pytest.mark.parametrize("chosen", [torch.tensor([2, 0]), torch.tensor([True, False, False, True])])
def test_select_releases_the_rest(llama, pair, chosen):
    ours, theirs, mask = pair
    for cache in (ours, theirs):
        cache.batch_select_indices(chosen)
    assert ours.kv.stats().slots_live == ours.batch_size == 2
    assert_next_logits_equal(llama, ours, theirs, mask[chosen])


def test_repeat_takes_more_slots(llama, pair):
    ours, theirs, mask = pair
    for cache in (ours, theirs):
        cache.batch_repeat_interleave(2)
    assert ours.kv.stats().slots_live == 8
    assert_next_logits_equal(llama, ours, theirs, mask.repeat_interleave(2, dim=0))


def test_repeat_past_the_slots_changes_nothing(llama, pair):
    from pyvattn.errors import OutOfSlots

    ours, theirs, mask = pair
    with pytest.raises(OutOfSlots):
        ours.batch_repeat_interleave(3)
    assert ours.kv.stats().slots_live == 4
    assert_next_logits_equal(llama, ours, theirs, mask)


@pytest.mark.parametrize("remove", [0, -1, -2])
def test_crop(llama, pair, remove):
    ours, theirs, mask = pair
    for cache in (ours, theirs):
        cache.crop(remove)
    assert_next_logits_equal(llama, ours, theirs, mask[:, : PAST + remove])


@pytest.mark.parametrize("named", [[-1, 0], (3, -4), torch.tensor([3, 0], dtype=torch.int32)])
@pytest.mark.parametrize("method", ["batch_select_indices", "reorder_cache"])
def test_rows_by_any_index_that_a_tensor_takes(llama, pair, method, named):
    ours, theirs, mask = pair
    getattr(ours, method)(named)
    theirs.batch_select_indices(torch.tensor([3, 0]))
    assert len(set(ours.slots)) == 2
    assert_next_logits_equal(llama, ours, theirs, mask[[3, 0]])


def test_rows_twice_by_different_names_get_slots_of_their_own(llama, pair):
    ours, theirs, mask = pair
    for cache in (ours, theirs):
        cache.batch_select_indices(torch.tensor([3, -1, 0, -4]))
    assert len(set(ours.slots)) == 4
    assert_next_logits_equal(llama, ours, theirs, mask[[3, 3, 0, 0]])


WRONG = {
    "past the rows": torch.tensor([0, 4]),
    "before the rows": [-5],
    "too few booleans": [True, False],
    "no row": [],
    "no row by booleans": torch.zeros(4, dtype=torch.bool),
    "fractions": torch.tensor([0.0, 1.0]),
    "two dimensions": torch.tensor([[0, 1]]),
    "one number": torch.tensor(1),
    "text": ["a"],
    "nothing": None,
}


@pytest.mark.parametrize("named", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("method", ["batch_select_indices", "reorder_cache"])
def test_what_names_no_row_moves_nothing(llama, pair, method, named):
    ours, theirs, mask = pair
    before = ours.slots
    with pytest.raises(TensorError, match="row"):
        getattr(ours, method)(named)
    assert ours.slots == before
    assert_next_logits_equal(llama, ours, theirs, mask)


@pytest.mark.parametrize("repeats", [0, -1, 1.5, None])
def test_what_is_no_count_of_repeats_moves_nothing(llama, pair, repeats):
    ours, theirs, mask = pair
    with pytest.raises(TensorError, match="repeats="):
        ours.batch_repeat_interleave(repeats)
    assert_next_logits_equal(llama, ours, theirs, mask)


def test_crop_by_what_is_no_number(llama, pair):
    ours, theirs, mask = pair
    with pytest.raises(TensorError, match=r"tokens_to_remove=1\.5"):
        ours.crop(1.5)
    ours.crop(torch.tensor(-1))
    theirs.crop(-1)
    assert_next_logits_equal(llama, ours, theirs, mask[:, :-1])


def test_crop_into_the_padding_of_short_rows(llama, pair):
    ours, _, _ = pair
    ours.crop(-38)
    assert ours.lengths == (0, 0, 0, 2)
    ours.crop(-1000)
    assert ours.get_seq_length() == 0


def test_what_the_library_asks(pair):
    ours, _, _ = pair
    assert len(ours) == 3
    assert ours.get_mask_sizes(5, 0) == (PAST + 5, 0)
    assert ours.get_max_length() == 128
    assert ours.is_croppable
    assert not ours.is_compileable
    assert ours.is_sliding == [False] * 3
    assert ours.is_initialized
    ours.reset()
    assert (ours.batch_size, ours.is_initialized, ours.lengths) == (-1, False, ())
