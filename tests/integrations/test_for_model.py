# SPDX-License-Identifier: Apache-2.0
"""Models that run compiled, offloaded, in another dtype or without a cache of their own."""

from __future__ import annotations

import pytest
from tiny_models import assert_same, dynamic, generate, left_padded, reference, torch

from pyvattn import errors
from pyvattn.integrations.transformers import VAttentionCache

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
