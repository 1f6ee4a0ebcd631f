# SPDX-License-Identifier: Apache-2.0
"""Every causal language model of the library, small: token for token, or refused by name.

Each goes through both, ``generate`` with our cache and ``generate_batch``.

``refused.py`` lists apart, with reasons, those that the cache refuses, those that the library
itself cannot run, and those that were not tried. One that is neither exact nor listed fails, and
so does one that is listed and works.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from family_sizes import make
from refused import LIBRARY_FAILS, NOT_TRIED, REFUSED, REFUSED_IN_BATCHES
from tiny_models import dynamic, generate, left_padded, random_prompts, torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from pyvattn import errors
from pyvattn.integrations.transformers import VAttentionCache, generate_batch
from pyvattn.integrations.transformers.switch import attends_itself

pytestmark = pytest.mark.filterwarnings("ignore")

FAMILIES = sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()))
NEW = 6


def outcome(model, inputs):
    """What our cache generates."""
    with VAttentionCache.for_model(model, max_batch=3, max_tokens=64, memory="64MiB") as cache:
        result = generate(model, inputs, cache, max_new_tokens=NEW)
        all_of_them = (cache.get_seq_length(),) * 3
        # With attention of its own padding is kept as well.
        assert cache.lengths == (all_of_them if attends_itself(model) else (8, 22, 14))
        return result.sequences


def batched(model, prompts):
    """What requests that join and leave get, their prompts in chunks, as rows."""
    options = {"memory": "64MiB", "max_batch": 2, "max_prefill_tokens": 11}
    requests = generate_batch(model, prompts, max_new_tokens=NEW, **options)
    return torch.tensor([request.output for request in requests])


def assert_refused(model, prompts, reason):
    """Both say so in an error of ours."""
    with pytest.raises(errors.Error, match=reason):
        outcome(model, left_padded(prompts))
    with pytest.raises(errors.Error, match=reason):
        batched(model, prompts)


@pytest.mark.parametrize("family", FAMILIES)
def test_exact_or_refused(family):
    if family in NOT_TRIED:
        pytest.skip(f"{family} {NOT_TRIED[family]}")
    model = make(family)
    prompts = random_prompts((3, 17, 9))
    inputs = left_padded(prompts)
    if family in LIBRARY_FAILS:
        with pytest.raises(Exception, match=LIBRARY_FAILS[family]):
            model.generate(**inputs, max_new_tokens=NEW)
        assert_refused(model, prompts, "")
    elif family in REFUSED:
        # The library does run it, with a cache that it makes itself.
        assert model.generate(**inputs, max_new_tokens=NEW, do_sample=False).shape == (3, 17 + NEW)
        assert_refused(model, prompts, REFUSED[family])
    else:
        assert_exact(model, prompts, REFUSED_IN_BATCHES.get(family))


def assert_exact(model, prompts, refused_in_batches):
    """Both give the library's tokens; in a batch, or the reason why not."""
    inputs = left_padded(prompts)
    expected = generate(model, inputs, dynamic(model), max_new_tokens=NEW).sequences
    assert torch.equal(outcome(model, inputs), expected)
    if refused_in_batches:
        with pytest.raises(errors.UnsupportedError, match=refused_in_batches):
            batched(model, prompts)
    else:
        assert torch.equal(batched(model, prompts), expected[:, -NEW:])
    assert len(expected.unique()) > 20


def test_the_guide_counts_them():
    apart = [REFUSED, REFUSED_IN_BATCHES, LIBRARY_FAILS, NOT_TRIED]
    named = [family for group in apart for family in group]
    assert len(set(named)) == len(named)
    assert set(named) <= set(FAMILIES)
    exact = len(FAMILIES) - len(named) + len(REFUSED_IN_BATCHES)
    guide = Path(__file__).parents[2] / "docs/transformers.md"
    text = " ".join(guide.read_text(encoding="utf-8").split())
    in_batches = exact - len(REFUSED_IN_BATCHES)
    assert (
        f"Of its {len(FAMILIES)} causal classes, each made small with a layer of every kind that "
        f"it has, {exact} give the library's tokens in `generate`, {in_batches} "
        f"of them in continuous batching too. {len(REFUSED)} are refused; the library itself "
        f"cannot run {len(LIBRARY_FAILS)} of them, and {len(NOT_TRIED)} were not tried."
    ) in text
