# SPDX-License-Identifier: Apache-2.0
"""States in a cache on a GPU: zero at first, copied by forks, and models that decode with them.

Also in CUDA graphs: exact in float32 by an attention kernel of the tests, and as served in
bfloat16, where every token is held to the logits that the library computes for it.
"""

# ruff: noqa: E402
from __future__ import annotations

import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parents[1] / "integrations"))

from nvidia_drivers import require
from test_captured_steps import OnDevice
from test_states import MODELS, PROMPTS, tiny, tiny_of
from tiny_models import random_prompts, reference

from pyvattn import CacheSpec, KVCache, StateGroup
from pyvattn.attention import registry
from pyvattn.integrations.transformers import Engine, generate_batch, spec_for
from pyvattn.prefix import PrefixIndex

# In float32 torch 2.11 divides the products of experts on the host, which no graph can hold.
MIXTURES = {"Qwen3Next", "GraniteMoeHybrid"}
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


@pytest.mark.parametrize("driver", DRIVERS)
def test_what_is_kept_for_later_prompts_is_what_was_computed_until_then(driver):
    require(driver)
    spec = CacheSpec(2, 4, 128, max_slots=4, max_tokens=16384, states=[STATE])
    with KVCache(spec, device="cuda", driver=driver, memory="1GiB", layout="layer") as cache:
        index = PrefixIndex(cache)
        prompt = list(range(index.block_tokens + 9))
        slot, _ = index.admit(prompt)
        pause = index.next_snapshot(slot, 0)
        assert pause == index.block_tokens
        torch.cuda._sleep(100_000_000)
        fill(cache, slot, 3)
        index.publish(slot, prompt[:pause])
        fill(cache, slot, 5)
        index.publish(slot, prompt)
        other, hit = index.admit([*prompt, 7])
        assert hit == pause
        assert holds(cache, other, 3)
        assert holds(cache, slot, 5)
        for each in (slot, other):
            index.release(each)
        index.close()


@pytest.mark.parametrize("name", MODELS)
def test_prompts_that_begin_alike_say_what_the_library_says(name):
    require("stock-uvm")
    family, sizes = MODELS[name]
    model = tiny_of(name, family, {**sizes, "head_dim": 64, "num_key_value_heads": 4}).cuda()
    spec = spec_for(model, max_slots=12, max_tokens=512)
    options = {"device": "cuda:0", "driver": "stock-uvm", "page_size": "64K", "layout": "token"}
    with KVCache(spec, memory="256MiB", **options) as kv, Engine(model, kv) as engine:
        block = engine.prefixes.block_tokens
        shared, *tails = random_prompts([block + 3, 5, 6, 7])
        requests = [engine.submit(shared + tail, 8) for tail in tails]
        engine.run()
    assert [request.reused for request in requests] == [0, block, block]
    for request in requests:
        inputs = {"input_ids": torch.tensor([request.prompt], device="cuda")}
        tokens = reference(model, inputs, max_new_tokens=8).sequences[0, len(request.prompt) :]
        assert request.output == tokens.tolist()


def likely(model, request):
    """Whether every token is as likely as the likeliest, within what bfloat16 rounds away."""
    model.set_attn_implementation("sdpa")
    with torch.no_grad():
        ids = torch.tensor([request.prompt + request.output], device="cuda")
        logits = model(ids, logits_to_keep=len(request.output) + 1).logits[0, :-1].float()
    chosen = logits.gather(1, ids[0, len(request.prompt) :, None])[:, 0]
    return bool((((logits.max(dim=-1).values - chosen) / logits.std(dim=-1)) < 0.2).all())


@pytest.mark.parametrize("name", MODELS)
def test_captured_steps_say_what_the_library_says(name, monkeypatch):
    require("cumem")
    kernels = {OnDevice.name: OnDevice(), **registry._KERNELS}
    monkeypatch.setattr(registry, "_KERNELS", kernels)
    model = tiny(name).cuda()
    spec = spec_for(model, max_slots=5, max_tokens=256)
    # A row is one page, whatever its length, as the kernel reads all of it.
    options = {"device": "cuda:0", "driver": "cumem", "page_size": "2M", "layout": "token"}
    with (
        KVCache(spec, memory="256MiB", **options) as kv,
        Engine(model, kv, max_prefill_tokens=16) as engine,
    ):
        requests = []
        for prompt, new in zip(PROMPTS * 2, (20, 4, 9, 24, 11, 24, 3, 17), strict=True):
            requests.append(engine.submit(prompt, new))
            engine.step()
            engine.step()
        engine.run()
        assert engine.graphs or name in MIXTURES
    for request in requests:
        inputs, new = {"input_ids": torch.tensor([request.prompt], device="cuda")}, 24
        tokens = reference(model, inputs, max_new_tokens=new).sequences[0, len(request.prompt) :]
        assert request.output == tokens[: request.max_new_tokens].tolist()


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        # As Qwen3.5-27B, with one of every four blocks of layers and few tokens to choose from.
        (
            "Qwen3_5",
            {
                "hidden_size": 5120,
                "intermediate_size": 17408,
                "num_attention_heads": 24,
                "num_key_value_heads": 4,
                "head_dim": 256,
                "layer_types": [*["linear_attention"] * 3, "full_attention"] * 2,
                "linear_num_key_heads": 16,
                "linear_num_value_heads": 48,
                "linear_key_head_dim": 128,
                "linear_value_head_dim": 128,
            },
        ),
        # As Nemotron-H-8B in the layers that it has.
        (
            "NemotronH",
            {
                "hidden_size": 4096,
                "intermediate_size": 21504,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "head_dim": 128,
                "layers_block_type": ["mamba", "mlp", "mamba", "attention"] * 2,
                "mamba_num_heads": 128,
                "mamba_head_dim": 64,
                "ssm_state_size": 128,
                "n_groups": 8,
                "chunk_size": 128,
            },
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_captured_steps_of_a_real_shape_serve_requests_that_join_and_leave(family, sizes):
    require("cumem")
    base, tiny_sizes = MODELS[family]
    sizes = {**tiny_sizes, **sizes, "num_hidden_layers": 8, "initializer_range": 0.05}
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            model = tiny_of(family, base, sizes)
    finally:
        torch.set_default_dtype(before)
    spec = spec_for(model, max_slots=6, max_tokens=1024)
    options = {"device": "cuda:0", "driver": "cumem", "memory": "8GiB"}
    with KVCache(spec, **options) as kv, Engine(model, kv, graphs=True) as engine:
        lengths = [(300, 40), (9, 70), (500, 5), (1, 60), (64, 33), (257, 10), (80, 50)]
        requests = []
        for length, new in lengths:
            requests.append(engine.submit(*random_prompts([length]), new))
            engine.step()
        engine.run()
        assert engine.graphs
    assert all(likely(model, request) for request in requests)
