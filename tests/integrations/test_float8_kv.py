# SPDX-License-Identifier: Apache-2.0
"""Float8 K and V against the library's own cache whose K and V went through the same rounding."""

from __future__ import annotations

import pytest
from tiny_models import generate, left_padded, make_gpt2, make_llama, random_prompts, torch

from pyvattn import KVCache, errors
from pyvattn.attention import KVScales, scales_of
from pyvattn.integrations.transformers import Engine, VAttentionCache, generate_batch, spec_for

transformers = pytest.importorskip("transformers")

FLOAT8 = "float8_e4m3fn"
LARGEST = 448.0
NEW = 20


class RoundedCache(transformers.DynamicCache):
    """The library's cache; what goes in is what float8 with ``scales`` would hold."""

    def __init__(self, model, scales):
        super().__init__(config=model.config)
        self.scales = scales

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        k, v = (
            rounded(new, scale)
            for new, scale in zip(
                (key_states, value_states), self.scales.layers[layer_idx], strict=True
            )
        )
        return super().update(k, v, layer_idx, *args, **kwargs)


def rounded(new, scale):
    """[batch, heads, tokens, dim] through float8, with nothing of pyvattn."""
    divided = (new / scale[:, None, None]).clamp(-LARGEST, LARGEST)
    return divided.to(torch.float8_e4m3fn).float() * scale[:, None, None]


def open_kv(model, slots=3, dtype=FLOAT8, **options):
    spec = spec_for(model, max_slots=slots, max_tokens=128, dtype=dtype)
    return KVCache(spec, device="cpu", memory="64MiB", **options)


def rounded_output(model, prompt, scales):
    """What the library generates one by one."""
    before = model.config._attn_implementation
    model.set_attn_implementation("sdpa")
    try:
        inputs = left_padded([prompt])
        result = generate(model, inputs, RoundedCache(model, scales), max_new_tokens=NEW)
    finally:
        model.set_attn_implementation(before)
    return result.sequences[0, len(prompt) :].tolist()


@pytest.mark.parametrize("make", [make_llama, make_gpt2])
@pytest.mark.parametrize("layout", ["layer", "token"])
def test_greedy_tokens_are_those_of_the_librarys_cache_with_the_same_rounding(make, layout):
    model, prompts = make(), random_prompts()
    with open_kv(model, layout=layout) as kv:
        requests = generate_batch(model, prompts, max_new_tokens=NEW, cache=kv)
        scales = scales_of(kv)
        assert not any(scales.is_pending(layer) for layer in range(kv.spec.layers))
    for request in requests:
        assert request.output == rounded_output(model, request.prompt, scales)
    assert len({token for request in requests for token in request.output}) > 5


def test_generate_takes_one_option_and_gives_the_same_tokens(llama, prompts):
    inputs = left_padded(prompts)
    options = {"max_batch": 4, "max_tokens": 128, "memory": "64MiB"}
    with VAttentionCache.for_model(llama, kv_dtype=FLOAT8, **options) as cache:
        assert cache.kv.spec.dtype == FLOAT8
        result = generate(llama, inputs, cache, max_new_tokens=NEW)
        scales = scales_of(cache.kv)
    for row, prompt in enumerate(prompts):
        new = result.sequences[row, inputs["input_ids"].shape[1] :].tolist()
        assert new == rounded_output(llama, prompt, scales)


def test_one_option_of_generate_batch_halves_what_bfloat16_takes(llama, prompts):
    one = generate_batch(llama, prompts, max_new_tokens=NEW, memory="64MiB", kv_dtype=FLOAT8)
    with open_kv(llama, slots=5) as kv:
        other = generate_batch(llama, prompts, max_new_tokens=NEW, cache=kv)
        assert 2 * kv.spec.bytes_at(100) == spec_for(llama, 1, 128, "bfloat16").bytes_at(100)
    assert [each.output for each in one] == [each.output for each in other]


def logits_of(model, tokens, **options):
    """Of a pass over the first half, and of the rest token by token."""
    options |= {"max_batch": 1, "max_tokens": 128, "memory": "64MiB"}
    half = tokens.shape[1] // 2
    with VAttentionCache.for_model(model, **options) as cache, torch.no_grad():
        found = [model(tokens[:, :half], past_key_values=cache).logits]
        found += [
            model(tokens[:, at : at + 1], past_key_values=cache).logits
            for at in range(half, tokens.shape[1])
        ]
    return torch.cat(found, dim=1)


@pytest.mark.parametrize(("make", "most"), [(make_llama, 0.2), (make_gpt2, 0.1)])
def test_the_error_of_the_logits_is_bounded(make, most):
    """Root mean square over that of the logits, against float32 K and V; docs/transformers.md."""
    model = make()
    tokens = torch.tensor(random_prompts([80]))
    exact, small = logits_of(model, tokens), logits_of(model, tokens, kv_dtype=FLOAT8)
    error = (small - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert 0 < error < most


def test_scales_of_a_file_are_taken_as_they_are(tmp_path, llama, prompts):
    with open_kv(llama) as kv:
        generate_batch(llama, prompts, max_new_tokens=NEW, cache=kv)
        scales_of(kv).save(tmp_path / "scales.json")
        wanted = scales_of(kv)
    loaded = {"memory": "64MiB", "kv_dtype": FLOAT8, "kv_scales": tmp_path / "scales.json"}
    for request in generate_batch(llama, [prompts[0]], max_new_tokens=NEW, **loaded):
        assert request.output == rounded_output(llama, request.prompt, wanted)


def test_scales_are_the_first_prompts_and_stay(llama, prompts):
    with open_kv(llama) as kv, Engine(llama, kv) as engine:
        engine.submit(prompts[3], 2)
        engine.run()
        before = [torch.stack(layer).clone() for layer in scales_of(kv).layers]
        engine.submit(prompts[1], 4)
        engine.run()
        for layer, kept in zip(scales_of(kv).layers, before, strict=True):
            assert torch.equal(torch.stack(layer), kept)
            assert not torch.equal(kept, torch.ones_like(kept))


def test_a_step_that_fills_up_a_batch_sets_no_scales(llama):
    """As a captured one before the first prompt, whose rows are all scratch."""
    with open_kv(llama) as kv, Engine(llama, kv) as engine:
        slot = kv.admit(2)
        with torch.no_grad():
            engine._batch.decode([slot.index], [2], [None])
        assert scales_of(kv).is_pending(0)


def test_beams_are_copied_and_rows_read_as_float32(llama, prompts):
    inputs = left_padded(prompts[:2])
    with VAttentionCache.for_model(
        llama, kv_dtype=FLOAT8, max_batch=8, max_tokens=128, memory="64MiB"
    ) as cache:
        generate(llama, inputs, cache, max_new_tokens=6, num_beams=3)
        k, v = cache.read_layer(1)
        assert k.dtype == v.dtype == torch.float32
        assert torch.equal(k, rounded(k, scales_of(cache.kv).of(1).k))
        assert k.abs().max() > 0.1


def test_scales_for_a_cache_that_has_none_are_refused(llama, prompts):
    ones = [torch.ones(2)] * 3
    with pytest.raises(errors.UnsupportedError, match="float32 has no scales"):
        generate_batch(
            llama, prompts, max_new_tokens=2, memory="64MiB", kv_scales=KVScales(ones, ones)
        )
    with pytest.raises(errors.ArgumentError, match="kv_scales"):
        generate_batch(llama, prompts, max_new_tokens=2, memory="64MiB", kv_scales=1.0)
    with pytest.raises(errors.TensorError, match="scales of 1 layers for a cache of 3"):
        VAttentionCache.for_model(
            llama, max_batch=1, max_tokens=64, memory="64MiB", kv_dtype=FLOAT8,
            kv_scales=KVScales(ones[:1], ones[:1]),
        )  # fmt: skip
    with open_kv(llama) as kv, pytest.raises(errors.ConfigError, match="so kv_dtype can change"):
        generate_batch(llama, prompts, max_new_tokens=2, cache=kv, kv_dtype=FLOAT8)


def test_float8_as_the_dtype_of_a_model_is_still_refused_by_another_dtype(llama):
    with open_kv(llama, dtype="bfloat16") as kv, pytest.raises(errors.SpecError, match="bfloat16"):
        Engine(llama, kv)
