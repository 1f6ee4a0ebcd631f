# SPDX-License-Identifier: Apache-2.0
"""Continuous batching with windows in rings on a GPU: the library's tokens, captured or not."""

# ruff: noqa: E402
from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parents[1] / "integrations"))

from nvidia_drivers import require
from test_windows import tiny
from tiny_models import random_prompts, reference

from pyvattn import KVCache
from pyvattn.integrations.transformers import Engine, spec_for

PROMPTS = random_prompts((3, 60, 300, 130))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("graphs", [False, None])
def test_requests_say_what_they_say_without_rings(dtype, graphs):
    require("stock-uvm")
    model = tiny("Qwen3", sliding_window=60, num_key_value_heads=4, head_dim=64).cuda().to(dtype)
    spec = spec_for(model, max_slots=8, max_tokens=1024)
    rings = [replace(group, ring=group.window is not None) for group in spec.groups]
    outputs = []
    for groups in (spec.groups, rings):
        options = {"driver": "stock-uvm", "page_size": "64K", "layout": "layer"}
        with (
            KVCache(
                replace(spec, groups=groups), device="cuda:0", memory="256MiB", **options
            ) as kv,
            Engine(model, kv, graphs=graphs, prefix_reuse=False, max_prefill_tokens=100) as engine,
        ):
            assert (kv.chunk_tokens is None) == (groups is spec.groups)
            requests = [engine.submit(prompt, 16) for prompt in PROMPTS]
            engine.run()
        outputs.append([request.output for request in requests])
    if dtype is torch.float32:
        assert outputs[0] == outputs[1]
        for prompt, output in zip(PROMPTS, outputs[1], strict=True):
            inputs = {"input_ids": torch.tensor([prompt], device="cuda")}
            tokens = reference(model, inputs, max_new_tokens=16).sequences[0, len(prompt) :]
            assert output == tokens.tolist()
    # In bfloat16 kernels may add in another order: most tokens are the same.
    same = [
        a == b for one, two in zip(*outputs, strict=True) for a, b in zip(one, two, strict=True)
    ]
    assert sum(same) >= 0.5 * len(same)


def test_prompts_that_begin_alike_say_what_the_library_says():
    require("stock-uvm")
    model = tiny("Qwen3", sliding_window=60, num_key_value_heads=4, head_dim=64).cuda()
    spec = spec_for(model, max_slots=12, max_tokens=1024)
    groups = [replace(group, ring=group.window is not None) for group in spec.groups]
    options = {"driver": "stock-uvm", "page_size": "64K", "layout": "layer", "memory": "256MiB"}
    with (
        KVCache(replace(spec, groups=groups), device="cuda:0", **options) as kv,
        Engine(model, kv, max_prefill_tokens=100) as engine,
    ):
        block = engine.prefixes.block_tokens
        shared, *tails = random_prompts([2 * block + 3, 30, 40, 50])
        requests = [engine.submit(shared + tail, 16) for tail in tails]
        engine.run()
    assert [request.reused for request in requests] == [0, 2 * block, 2 * block]
    for request in requests:
        inputs = {"input_ids": torch.tensor([request.prompt], device="cuda")}
        tokens = reference(model, inputs, max_new_tokens=16).sequences[0, len(request.prompt) :]
        assert request.output == tokens.tolist()
