# SPDX-License-Identifier: Apache-2.0
"""The transformers integration on a GPU: exact in float32, captured steps in bfloat16.

In bfloat16 two kernels round differently, so where two tokens are nearly as likely either
may come out. There every token is held to the logits that the library computes for it.
"""

# ruff: noqa: E402
from __future__ import annotations

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from pyvattn import KVCache
from pyvattn.bench.random_model import make_model, make_prompts
from pyvattn.integrations.transformers import Engine, VAttentionCache, generate_batch, spec_for

LAYERS = 4

# The models are large: under xdist one worker makes them.
pytestmark = pytest.mark.xdist_group("transformers")


def llama_3_8b(dtype):
    """A model as wide as Llama-3-8B, of few layers."""
    return make_model("llama-3-8b", "cuda", layers=LAYERS, dtype=dtype)


@pytest.fixture(scope="module")
def bf16():
    return llama_3_8b("bfloat16")


@pytest.fixture(scope="module")
def fp32():
    return llama_3_8b("float32")


def random_prompts(*lengths):
    return [make_prompts("llama-3-8b", 1, length, seed=length)[0] for length in lengths]


def dynamic(model, ids, new):
    """Return the tokens that the library generates with its DynamicCache, and their logits."""
    model.set_attn_implementation("sdpa")
    found = model.generate(
        ids,
        past_key_values=transformers.DynamicCache(config=model.config),
        max_new_tokens=new,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return found.sequences[:, ids.shape[1] :], torch.stack(found.logits, dim=1)


@torch.no_grad()
def assert_likely(model, requests):
    """Every token is as likely as the likeliest, within what bfloat16 rounds away."""
    model.set_attn_implementation("sdpa")
    for request in requests:
        ids = torch.tensor([request.prompt + request.output], device="cuda")
        logits = model(ids, logits_to_keep=len(request.output) + 1).logits[0, :-1].float()
        chosen = logits.gather(1, ids[0, len(request.prompt) :, None])[:, 0]
        short = (logits.max(dim=-1).values - chosen) / logits.std(dim=-1)
        assert short.max() < 0.1
        assert len(request.output) < 8 or len(set(request.output)) > 3, "one thing over and over"


def assert_generate_is_exact(model, **options):
    ids = torch.tensor(make_prompts("llama-3-8b", 3, 200), device="cuda")
    expected, _ = dynamic(model, ids, 48)
    options = {"max_batch": 3, "max_tokens": 512, "memory": "8GiB", **options}
    with VAttentionCache.for_model(model, **options) as cache:
        found = model.generate(ids, past_key_values=cache, max_new_tokens=48, do_sample=False)
    assert torch.equal(found[:, ids.shape[1] :], expected)
    assert len(expected.unique()) > 20


@pytest.mark.parametrize("layout", ["layer", "token"])
def test_generate_in_float32_is_token_exact(fp32, layout):
    assert_generate_is_exact(fp32, layout=layout)


@pytest.mark.alone
def test_generate_with_every_layer_of_llama_3_8b_is_token_exact():
    if torch.cuda.mem_get_info()[0] < 64 << 30:
        pytest.skip("needs 64 GiB of free device memory")
    assert_generate_is_exact(make_model("llama-3-8b", "cuda", dtype="float32"))


def test_generate_batch_in_float32_is_token_exact(fp32):
    prompts = random_prompts(7, 150, 33, 90)
    expected = [dynamic(fp32, torch.tensor([p], device="cuda"), 24)[0][0].tolist() for p in prompts]
    requests = generate_batch(fp32, prompts, max_new_tokens=24, max_batch=2, memory="8GiB")
    assert [request.output for request in requests] == expected


def test_generate_in_bfloat16_differs_at_near_ties_only(bf16):
    ids = torch.tensor(make_prompts("llama-3-8b", 2, 200), device="cuda")
    expected, logits = dynamic(bf16, ids, 48)
    with VAttentionCache.for_model(bf16, max_batch=2, max_tokens=512, memory="8GiB") as cache:
        found = bf16.generate(ids, past_key_values=cache, max_new_tokens=48, do_sample=False)
    found = found[:, ids.shape[1] :]
    for row in range(2):
        differ = (found[row] != expected[row]).nonzero()
        if len(differ):
            at = int(differ[0])
            scores = logits[row, at].float()
            short = (scores.max() - scores[found[row, at]]) / scores.std()
            assert short < 0.1


def open_kv(model, slots=9, memory="16GiB", guard_tokens=192, **options):
    spec = replace(spec_for(model, slots, 1024), guard_tokens=guard_tokens)
    return KVCache(spec, device="cuda:0", memory=memory, **options)


def serve(model, prompts, new, **options):
    with open_kv(model) as kv, Engine(model, kv, **options) as engine:
        requests = [engine.submit(prompt, new) for prompt in prompts]
        engine.run()
        return requests


def test_a_captured_step_gives_the_tokens_of_the_step_itself(bf16):
    """8 rows from the first step to the last: the same kernels on the same shapes."""
    prompts = random_prompts(*range(40, 48))
    captured = serve(bf16, prompts, 64, graphs=True)
    plain = serve(bf16, prompts, 64, graphs=False)
    assert [request.output for request in captured] == [request.output for request in plain]
    assert_likely(bf16, captured)


def test_fused_projections_say_the_same_and_take_no_memory(bf16):
    prompts = random_prompts(200, 70, 300)
    before = torch.cuda.memory_allocated()
    requests = serve(bf16, prompts, 40, graphs=True, fuse_projections=True)
    assert_likely(bf16, requests)
    attention = bf16.model.layers[0].self_attn
    layers = (attention.q_proj, attention.k_proj, attention.v_proj)
    assert len({layer.weight.untyped_storage().data_ptr() for layer in layers}) == 1
    # What libraries keep for a stream is far less than the weights of a layer.
    weights = sum(p.nbytes for p in bf16.model.layers.parameters())
    assert torch.cuda.memory_allocated() - before < weights / LAYERS


@pytest.mark.parametrize("layout", ["layer", "token"])
def test_captured_steps_serve_requests_that_join_and_leave(bf16, layout):
    shapes = [(300, 40), (9, 70), (500, 5), (1, 60), (64, 33), (257, 1), (80, 90), (900, 20)]
    with open_kv(bf16, slots=4, layout=layout) as kv:
        with Engine(bf16, kv, graphs=True, max_prefill_tokens=256) as engine:
            requests = [engine.submit(random_prompts(n)[0], new) for n, new in shapes]
            engine.run()
            assert len(engine.running) == 0
        assert kv.stats().slots_live == 0
    assert [len(request.output) for request in requests] == [new for _, new in shapes]
    assert_likely(bf16, requests)


def test_the_host_waits_for_no_value_of_a_step(bf16):
    """Steps that prefill, join, decode and leave; the one wait is for the step before."""
    with open_kv(bf16) as kv, Engine(bf16, kv, graphs=True) as engine:
        engine.capture(8)
        requests = [engine.submit(prompt, 12) for prompt in random_prompts(5, 30, 60)]
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(4):
                engine.step()
            requests.append(engine.submit(random_prompts(90)[0], 6))
            engine.run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert_likely(bf16, requests)


def test_requests_that_outgrow_the_memory_start_over(bf16):
    """A page holds 128 tokens; with the guard a request needs 3 pages at first and 4 later."""
    with (
        open_kv(bf16, memory="32MiB", layout="token") as kv,
        Engine(bf16, kv, graphs=True) as engine,
    ):
        requests = [engine.submit(prompt, 120) for prompt in random_prompts(100, 101, 102, 103)]
        again = set()
        while engine.busy:
            engine.step()
            again |= {each for each in engine.waiting if each.output}
        assert again
    assert_likely(bf16, requests)


def test_a_model_that_cannot_be_captured_says_so(bf16, monkeypatch):
    from pyvattn import errors

    def waits(hidden):
        hidden.sum().item()
        return real(hidden)

    real = bf16.model.layers[0].mlp.forward
    with open_kv(bf16) as kv, Engine(bf16, kv, graphs=True) as engine:
        monkeypatch.setattr(bf16.model.layers[0].mlp, "forward", waits)
        with pytest.raises(errors.UnsupportedError, match="graphs=False"):
            engine.capture(1)
        monkeypatch.undo()
        request = engine.submit(random_prompts(20)[0], 10)
        engine.run()
    assert_likely(bf16, [request])


def test_float32_has_no_graph_and_says_why(fp32):
    from pyvattn import errors

    with open_kv(fp32) as kv:
        with pytest.raises(errors.UnsupportedError, match="reads lengths on the host"):
            Engine(fp32, kv, graphs=True)
        assert Engine(fp32, kv).graphs is False
