# SPDX-License-Identifier: Apache-2.0
"""Continuous batching with windows in rings: the library's tokens, long prompts in pieces."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_windows import FAMILIES, PROMPTS, expect, tiny
from tiny_models import random_prompts, torch

from pyvattn import KVCache
from pyvattn.integrations.transformers import Engine, spec_for

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without:UserWarning")

# 64K pages of these layers have 128 tokens and more, so a ring has no less.
WINDOW = 60


@pytest.fixture(scope="module", params=["Gemma3Text", "GptOss", "Qwen3"])
def model(request):
    assert request.param in FAMILIES
    return tiny(request.param, sliding_window=WINDOW, num_key_value_heads=4, head_dim=32)


def open_kv(model, memory="64MiB", **options):
    spec = spec_for(model, max_slots=8, max_tokens=512)
    groups = [replace(group, ring=group.window is not None) for group in spec.groups]
    return KVCache(
        replace(spec, groups=groups),
        device="cpu",
        memory=memory,
        page_size="64K",
        layout="layer",
        **options,
    )


def alone(model, prompt, new):
    ids = torch.tensor([prompt])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return expect(model, inputs, max_new_tokens=new).sequences[0, len(prompt) :].tolist()


@pytest.mark.parametrize("max_prefill_tokens", [50, 8192])
def test_tokens_are_the_librarys_beyond_the_rings(model, max_prefill_tokens):
    prompts = [*PROMPTS, *random_prompts((300, 130))]
    with open_kv(model, strict=True) as kv:
        assert any(0 < geometry.ring_tokens <= 256 for geometry in kv.geometries)
        with Engine(model, kv, max_prefill_tokens=max_prefill_tokens) as engine:
            requests = [engine.submit(prompt, 12) for prompt in prompts]
            engine.run()
        assert kv.stats().slots_live == 0
    for request in requests:
        assert request.output == alone(model, request.prompt, 12)


def test_a_prompt_runs_in_one_step_piece_by_piece(model):
    (prompt,) = random_prompts((300,))
    with open_kv(model) as kv, Engine(model, kv) as engine:
        passes = []
        packed = engine._batch._packed
        engine._batch._packed = lambda chunks, tokens: (
            passes.append(len(tokens)) or packed(chunks, tokens)
        )
        request = engine.submit(prompt, 2)
        engine.step()
        assert sum(passes) == 300
        assert max(passes) == kv.chunk_tokens
        engine.run()
    assert request.output == alone(model, prompt, 2)


@pytest.mark.parametrize("preemption", ["swap", "recompute"])
def test_requests_that_had_to_leave_go_on(model, preemption):
    prompts = random_prompts((250, 240, 230))
    with open_kv(model) as kv:
        memory = 2 * kv._pages_for(256) * kv.page_size + kv.page_size
    with (
        open_kv(model, memory=memory, background=False) as kv,
        Engine(model, kv, preemption=preemption) as engine,
    ):
        requests = [engine.submit(prompt, 20) for prompt in prompts]
        engine.run()
        counts = engine.preemptions()
    assert (counts.swapped if preemption == "swap" else counts.recomputed) > 0
    for request in requests:
        assert request.output == alone(model, request.prompt, 20)


def test_prompts_that_begin_alike_say_what_the_library_says(model):
    """The beginning is longer than a ring, and was written over by the first to have it."""
    with open_kv(model) as kv, Engine(model, kv, max_prefill_tokens=300) as engine:
        block = engine.prefixes.block_tokens
        shared, *tails = random_prompts([2 * block + 3, 40, 50, 60, 70])
        requests = [engine.submit(shared + tail, 12) for tail in tails[:3]]
        engine.run()
        # The third goes on where the two before it parted, or all behind the first's last block.
        assert requests[-1].reused >= 2 * block
        later = engine.submit(shared + tails[3], 12)
        engine.run()
        assert later.reused >= 2 * block
        turn = [*requests[0].prompt, *requests[0].output[:-1], *random_prompts([9])[0]]
        again = engine.submit(turn, 12)
        engine.run()
        assert again.reused >= 2 * block
    for request in [*requests, later, again]:
        assert request.output == alone(model, request.prompt, 12)


def test_samples_of_one_prompt_wait_for_what_they_share(model):
    with open_kv(model) as kv, Engine(model, kv) as engine:
        block = engine.prefixes.block_tokens
        (prompt,) = random_prompts([2 * block + 20])
        requests = engine.submit_samples(prompt, 12, n=3)
        engine.run()
    assert [request.reused for request in requests] == [0, 2 * block, 2 * block]
    expected = alone(model, prompt, 12)
    assert [request.output for request in requests] == [expected] * 3
