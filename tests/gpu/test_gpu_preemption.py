# SPDX-License-Identifier: Apache-2.0
"""Requests that go to pinned memory and back while others run on the GPU."""

# ruff: noqa: E402
from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from pyvattn import KVCache
from pyvattn.bench.random_model import make_model, make_prompts
from pyvattn.integrations.transformers import Engine, Preemptions, spec_for

# The model is large: under xdist one worker makes it.
pytestmark = pytest.mark.xdist_group("transformers")

PAGE = 2 << 20
NEW = 700


@pytest.mark.parametrize("prefix_reuse", [False, True])
def test_tokens_are_those_of_a_run_with_memory_for_all(prefix_reuse):
    """In float32 a page has 512 tokens: each request begins with one and grows into a third."""
    model = make_model("llama-3-8b", "cuda", layers=2, dtype="float32")
    spec = spec_for(model, max_slots=4, max_tokens=2048)
    prompts = [make_prompts("llama-3-8b", 1, length, seed=length)[0] for length in (400, 390, 380)]
    pages = {"driver": "cumem", "page_size": PAGE, "layout": "layer", "read_ahead": 0}

    def outputs(memory, **options):
        with (
            KVCache(spec, device="cuda", memory=memory, **pages) as kv,
            Engine(model, kv, prefix_reuse=prefix_reuse, **options) as engine,
        ):
            requests = [engine.submit(prompt, NEW) for prompt in prompts]
            engine.run()
            return [request.output for request in requests], engine.preemptions()

    expected, none = outputs("1GiB")
    assert none == Preemptions()
    # Four arenas, of five pages each.
    found, counts = outputs(4 * 5 * PAGE, preemption="swap")
    assert counts.swapped > 0
    assert counts.refused == counts.host_bytes == 0
    assert found == expected
