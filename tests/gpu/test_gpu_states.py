# SPDX-License-Identifier: Apache-2.0
"""States in a cache on a GPU: zero at first, copied by forks, and models that decode with them."""

# ruff: noqa: E402
from __future__ import annotations

import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parents[1] / "integrations"))

from nvidia_drivers import require
from test_states import MODELS, PROMPTS, tiny
from tiny_models import reference

from pyvattn import CacheSpec, KVCache, StateGroup
from pyvattn.integrations.transformers import Engine, generate_batch, spec_for

DRIVERS = ["cumem", "stock-uvm", "patched"]
STATE = StateGroup(range(3), {"conv": ((640, 4), "bfloat16"), "ssm": ((8, 64, 128), "float32")})


def fill(cache, slot, value):
    for layer in range(3):
        for tensor in cache.state(layer).values():
            tensor[slot.index] = value


def holds(cache, slot, value):
    tensors = [t for layer in range(3) for t in cache.state(layer).values()]
    return all(bool((tensor[slot.index] == value).all()) for tensor in tensors)


@pytest.mark.parametrize("driver", DRIVERS)
def test_states_live_as_long_as_their_requests(driver):
    require(driver)
    spec = CacheSpec(2, 4, 128, max_slots=4, max_tokens=4096, states=[STATE])
    with KVCache(spec, device="cuda", driver=driver, memory="256MiB") as cache:
        slot = cache.admit(100)
        assert holds(cache, slot, 0)
        fill(cache, slot, 3)
        fork = cache.fork(slot)
        fill(cache, slot, 5)
        cache.step({slot: 3000})
        assert holds(cache, slot, 5)
        assert holds(cache, fork, 3)
        there = cache.offload(slot)
        cache.release(slot)
        cache.release(fork)
        back = cache.restore(there)
        assert holds(cache, back, 5)
        cache.release(back)
        # More requests than came before: some of them get what those had.
        again = [cache.admit(100) for _ in range(4)]
        assert all(holds(cache, each, 0) for each in again)
        for each in again:
            cache.release(each)


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_says_what_the_library_says(name):
    require("cumem")
    model = tiny(name).cuda()
    requests = generate_batch(
        model, PROMPTS, max_new_tokens=16, memory="256MiB", driver="cumem", max_prefill_tokens=16
    )
    for request, prompt in zip(requests, PROMPTS, strict=True):
        inputs = {"input_ids": torch.tensor([prompt], device="cuda")}
        expected = reference(model, inputs, max_new_tokens=16).sequences[0, len(prompt) :]
        assert request.output == expected.tolist()


def test_preempted_states_come_back():
    require("cumem")
    model = tiny("Bamba").cuda()
    spec = spec_for(model, max_slots=4, max_tokens=256)
    options = {"device": "cuda:0", "driver": "cumem", "page_size": "2M", "layout": "token"}
    with (
        KVCache(spec, memory=6 * (2 << 20), **options) as kv,
        Engine(model, kv, preemption="swap") as engine,
    ):
        requests = [engine.submit(prompt, 16) for prompt in PROMPTS]
        engine.step()
        engine._make_room()
        engine.run()
        assert engine.preemptions().swapped > 0
    for request in requests:
        inputs = {"input_ids": torch.tensor([request.prompt], device="cuda")}
        tokens = reference(model, inputs, max_new_tokens=16).sequences[0, len(request.prompt) :]
        assert request.output == tokens.tolist()
