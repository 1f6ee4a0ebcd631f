# SPDX-License-Identifier: Apache-2.0
"""Models that run compiled, offloaded, in another dtype or without a cache of their own."""

from __future__ import annotations

from unittest import mock

import pytest
from tiny_models import assert_same, dynamic, generate, left_padded, reference, torch

from pyvattn import KVCache, errors
from pyvattn.integrations.transformers import Engine, VAttentionCache, generate_batch, spec_for

ROOM = {"max_batch": 4, "max_tokens": 128, "memory": "64MiB"}


@pytest.fixture
def inputs(prompts):
    return left_padded(prompts)


def test_a_compiled_model(llama, inputs):
    expected = reference(llama, inputs, max_new_tokens=6)
    torch.compiler.reset()
    with VAttentionCache.for_model(llama, **ROOM) as cache:
        llama.forward = torch.compile(llama.forward, backend="eager")
        assert_same(generate(llama, inputs, cache, max_new_tokens=6), expected)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_autocast(llama, inputs, dtype):
    """Logits within what bfloat16 tells apart; they go up to 20."""
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        expected = llama(**inputs, past_key_values=dynamic(llama)).logits
        with VAttentionCache.for_model(llama, **ROOM, dtype=dtype) as cache:
            assert cache.kv.spec.dtype == ("float32" if dtype is None else "bfloat16")
            logits = llama(**inputs, past_key_values=cache).logits
    real = inputs["attention_mask"].bool()
    assert logits.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(logits[real], expected[real], atol=0.15, rtol=0)


def test_a_cache_of_another_dtype_without_autocast(llama, inputs):
    with (
        VAttentionCache.for_model(llama, **ROOM, dtype="bfloat16") as cache,
        pytest.raises(errors.TensorError, match="make the cache with that dtype"),
    ):
        generate(llama, inputs, cache)


# The library says that the inputs lie elsewhere than the weights, as they must.
@pytest.mark.filterwarnings("ignore:You are calling .generate:UserWarning")
def test_an_offloaded_model(llama, inputs):
    accelerate = pytest.importorskip("accelerate", reason="offloading is accelerate's")
    expected = reference(llama, inputs)
    model = accelerate.cpu_offload(llama, execution_device=torch.device("cpu"))
    assert model.device.type == "meta"
    with pytest.raises(errors.ConfigError, match=r"offloaded.*pass device"):
        VAttentionCache.for_model(model, **ROOM)
    with VAttentionCache.for_model(model, **ROOM, device="cpu") as cache:
        assert_same(generate(model, inputs, cache), expected)


def test_an_offloaded_model_in_continuous_batching(llama, prompts):
    accelerate = pytest.importorskip("accelerate", reason="offloading is accelerate's")
    model = accelerate.cpu_offload(llama, execution_device=torch.device("cpu"))
    with pytest.raises(errors.UnsupportedError, match="weights are offloaded"):
        generate_batch(model, prompts, max_new_tokens=2, memory="64MiB")
    spec = spec_for(model, max_slots=3, max_tokens=128)
    with (
        KVCache(spec, device="cpu", memory="64MiB") as cache,
        pytest.raises(errors.UnsupportedError, match="weights are offloaded"),
    ):
        Engine(model, cache)


@pytest.mark.parametrize(
    "placed",
    [
        {"model.embed_tokens": 0, "model.layers.0": 0, "model.layers.1": 1},
        {"model.layers": "cuda:0", "lm_head": torch.device("cuda:1")},
    ],
)
def test_a_model_spread_over_two_gpus_is_refused(llama, prompts, placed):
    llama.hf_device_map = placed  # as accelerate leaves it
    refusal = pytest.raises(errors.UnsupportedError, match=r"lie on cuda:0, cuda:1.*device_map")
    with refusal:
        VAttentionCache.for_model(llama, **ROOM)
    with refusal:
        generate_batch(llama, prompts, max_new_tokens=2, memory="64MiB")


@pytest.mark.parametrize(
    "placed", [{"": "cpu"}, {"model": 0, "lm_head": "cuda:0"}, {"model": 0, "lm_head": "disk"}]
)
def test_a_model_that_computes_in_one_place_is_not(llama, placed):
    llama.hf_device_map = placed
    assert spec_for(llama, max_slots=1, max_tokens=64).layers == 3


def test_an_engine_over_a_cache_on_another_device(llama):
    spec = spec_for(llama, max_slots=3, max_tokens=128)
    with KVCache(spec, device="cpu", memory="64MiB") as cache:
        with (
            mock.patch.object(KVCache, "device", "cuda:1"),
            pytest.raises(errors.SpecError, match="on cuda:1 and the model on cpu: open the cache"),
        ):
            Engine(llama, cache)
        assert llama.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("option", ["device", "spec", "colour"])
def test_what_is_no_option_of_the_cache(llama, prompts, option):
    with pytest.raises(errors.ConfigError, match=f"no option {option}: use driver"):
        generate_batch(llama, prompts, max_new_tokens=2, memory="64MiB", **{option: "cpu"})


def test_generate_without_a_cache_is_refused_in_one_sentence(llama, inputs):
    with (
        VAttentionCache.for_model(llama, **ROOM) as cache,
        pytest.raises(errors.TensorError, match=r"with use_cache=False.*leave it out"),
    ):
        generate(llama, inputs, cache, use_cache=False)


@torch.no_grad()
def test_a_forward_pass_that_returns_no_cache_fills_it(llama, inputs):
    with VAttentionCache.for_model(llama, **ROOM) as cache:
        logits = llama(**inputs, past_key_values=cache, use_cache=False).logits
        expected = llama(**inputs, past_key_values=dynamic(llama)).logits
        real = inputs["attention_mask"].bool()
        torch.testing.assert_close(logits[real], expected[real], atol=1e-4, rtol=0)
        assert cache.lengths == tuple(inputs["attention_mask"].sum(dim=1).tolist())


def test_any_default_device_of_torch(llama, inputs, prompts):
    """What belongs on the host is made there; "meta" stands for "cuda", which scripts set."""
    expected = reference(llama, inputs, max_new_tokens=6)
    with VAttentionCache.for_model(llama, **ROOM) as cache, torch.no_grad():
        whole = llama(**inputs, past_key_values=cache).logits
        cache.reset()
        with torch.device("meta"):
            assert torch.equal(llama(**inputs, past_key_values=cache).logits, whole)
            cache.batch_select_indices([2, 0])
            cache.crop(-1)
            assert len(cache.lengths) == 2
    with KVCache(spec_for(llama, 3, 128), device="cpu", memory="64MiB") as kv:
        engine = Engine(llama, kv, max_prefill_tokens=11)
        requests = [engine.submit(prompt, 6) for prompt in prompts]
        with torch.device("meta"):
            engine.run()
    assert [request.output for request in requests] == expected.sequences[:, -6:].tolist()
