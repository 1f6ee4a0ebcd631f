# SPDX-License-Identifier: Apache-2.0
"""Real vLLM on a CPU that drafts tokens and checks them: stock's tokens, over rows."""

from __future__ import annotations

import pytest
from engines import WORKER, engine, generate
from tiny_eagle import write_eagle

# Room for a few of the twelve requests that may run at once: eviction and preemption.
SCARCE = {"num_gpu_blocks_override": 13}
NGRAM = {
    "method": "ngram",
    "num_speculative_tokens": 4,
    "prompt_lookup_max": 2,
    "prompt_lookup_min": 1,
}


def run(model, **options):
    """Return what an engine makes of the prompts, how many tokens it drafted and took."""
    drafted = []
    with engine(model, **options) as llm:
        scheduler = llm.llm_engine.engine_core.engine_core.scheduler
        make = scheduler.make_spec_decoding_stats

        def noted(stats, num_draft_tokens, num_accepted_tokens, *arguments, **options):
            drafted.append((num_draft_tokens, num_accepted_tokens))
            return make(stats, num_draft_tokens, num_accepted_tokens, *arguments, **options)

        scheduler.make_spec_decoding_stats = noted
        result = generate(llm)
    return result, [sum(each) for each in zip(*drafted, strict=True)]


@pytest.mark.parametrize("room", [{}, SCARCE], ids=["ample", "scarce"])
def test_drafts_from_the_tokens_so_far_change_no_token(tiny_llama, room):
    check(tiny_llama, NGRAM, room)


def test_drafts_of_a_model_change_no_token(tiny_llama):
    # The same model, so that most of its drafts are right: its layers have KV in the same rows.
    drafts = {"method": "draft_model", "model": tiny_llama, "num_speculative_tokens": 3}
    check(tiny_llama, drafts, SCARCE)


@pytest.mark.parametrize("room", [{}, SCARCE], ids=["ample", "scarce"])
def test_drafts_of_eagle_change_no_token(tiny_llama, tmp_path, room):
    drafts = {"method": "eagle", "model": write_eagle(tmp_path), "num_speculative_tokens": 3}
    check(tiny_llama, drafts, room)


def check(model, drafts, room):
    """Compare what stock and ours say and draft."""
    stock, counted = run(model, speculative_config=dict(drafts), **room)
    ours, ours_counted = run(model, worker_cls=WORKER, speculative_config=dict(drafts), **room)
    assert ours.tokens == stock.tokens
    assert ours_counted == counted
    drafted, taken = counted
    assert drafted >= taken > 0
    assert (ours.preemptions == stock.preemptions > 0) == bool(room)
