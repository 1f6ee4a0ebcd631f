# SPDX-License-Identifier: Apache-2.0
"""Models with sliding windows: token for token what the library generates, in a window's memory."""

from __future__ import annotations

import pytest
from test_models import GROUPED, SMALL, make
from tiny_models import (
    assert_same,
    dynamic,
    generate,
    left_padded,
    random_prompts,
    reference,
    torch,
)

from pyvattn import CacheSpec, KVCache, LayerGroup, errors
from pyvattn.integrations.transformers import Engine, VAttentionCache, generate_batch, spec_for

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without:UserWarning")

WINDOW = 8
TWO_WINDOWS = 2 * WINDOW + 3
ROOM = {"max_batch": 4, "max_tokens": 256, "memory": "64MiB", "strict": True}
MORE = {**GROUPED, "sliding_window": WINDOW, "num_hidden_layers": 4}
MIXED = ["sliding_attention", "full_attention"] * 2
FAMILIES = {
    "Gemma2": {**MORE, "head_dim": 16, "layer_types": MIXED},
    "Gemma3Text": {**MORE, "head_dim": 16, "layer_types": MIXED},
    "GptOss": {
        **MORE,
        "head_dim": 16,
        "layer_types": MIXED,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    "Mistral": MORE,
    "Qwen2": {**MORE, "use_sliding_window": True, "max_window_layers": 2},
    "Qwen3": {**MORE, "use_sliding_window": True, "max_window_layers": 2, "head_dim": 16},
    "Cohere2": {**MORE, "layer_types": MIXED},
    "Olmo3": {**MORE, "layer_types": MIXED},
}


# With torch's kernels the library leaves softcaps out, and refuses sinks.
EAGER = {"Gemma2ForCausalLM", "GptOssForCausalLM"}


def expect(model, inputs, **options):
    attention = "eager" if type(model).__name__ in EAGER else "sdpa"
    return reference(model, inputs, attention, **options)


def tiny(family, **changes):
    if family == "Gemma3Text":
        import transformers

        torch.manual_seed(1)
        config = transformers.Gemma3TextConfig(**{**SMALL, **FAMILIES[family], **changes})
        return transformers.Gemma3ForCausalLM(config).eval()
    return make(family, **{**FAMILIES[family], **changes})


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    return tiny(request.param)


@pytest.fixture(scope="module")
def mistral():
    return tiny("Mistral")


PROMPTS = random_prompts((3, TWO_WINDOWS, 9, 40))


def test_tokens_are_the_librarys_past_two_windows(model):
    inputs = left_padded(PROMPTS)
    expected = expect(model, inputs)
    with VAttentionCache.for_model(model, **ROOM) as cache:
        assert any(window == WINDOW for window in cache.kv.spec.windows)
        assert_same(generate(model, inputs, cache), expected)


def test_a_prompt_in_chunks(model):
    prompt = torch.tensor([random_prompts((50,))[0]])
    if type(model).__name__ in EAGER:
        model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = model(prompt, past_key_values=dynamic(model)).logits
        with VAttentionCache.for_model(model, **ROOM) as cache:
            parts = [model(part, past_key_values=cache).logits for part in prompt.split(7, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, atol=1e-4, rtol=0)


def test_continuous_batching(model):
    prompts = random_prompts((3, TWO_WINDOWS, 9, 40, 25, 11))
    alone = [
        expect(model, {"input_ids": torch.tensor([prompt])}, max_new_tokens=12).sequences[0]
        for prompt in prompts
    ]
    results = generate_batch(model, prompts, max_new_tokens=12, memory="64MiB", max_batch=3)
    for prompt, result, expected in zip(prompts, results, alone, strict=True):
        assert [*prompt, *result.output] == expected.tolist()


def test_a_row_holds_its_window_and_no_more(mistral):
    """One page of 64K holds 512 tokens of a layer's K, so the windows are some pages long."""
    model = make("Mistral", **{**MORE, "sliding_window": 600, "max_position_embeddings": 4096})
    room = {"max_batch": 1, "max_tokens": 4096, "memory": "64MiB", "layout": "layer"}
    with VAttentionCache.for_model(model, **room, page_size="64K", background=False) as cache:
        prompt = torch.tensor([random_prompts((3000,))[0]])
        with torch.no_grad():
            for part in prompt.split(250, dim=1):
                model(part, past_key_values=cache)
        whole = cache.kv.spec.flat().geometry("layer", "64K")
        assert cache.kv.stats().pages_live < 0.5 * whole.pages(3000) * whole.arenas


def test_a_pass_that_failed_is_followed_by_another(mistral, monkeypatch):
    prompt, others = torch.tensor([random_prompts((30,))[0]]), torch.tensor([[5, 6, 7, 8]])
    ours = VAttentionCache.for_model(mistral, **ROOM)
    theirs = dynamic(mistral)
    with ours, torch.no_grad():
        mistral(prompt, past_key_values=ours)
        mistral(prompt, past_key_values=theirs)
        with monkeypatch.context() as patched:
            patched.setattr(mistral.model.norm, "forward", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                mistral(torch.tensor([[9] * 12]), past_key_values=ours)
        torch.manual_seed(0)
        assert ours.lengths in ((30,), (42,))
        seen = ours.lengths[0]
        if seen == 42:
            mistral(torch.tensor([[9] * 12]), past_key_values=theirs)
        result = mistral(others, past_key_values=ours).logits
        expected = mistral(others, past_key_values=theirs).logits
    torch.testing.assert_close(result, expected, atol=1e-4, rtol=0)


def test_rows_that_get_fewer_tokens_than_others(mistral):
    """Later chunks with padding in them: each row's window begins at its own first token."""
    rows = random_prompts((40, 31))
    mask = torch.ones(2, 40, dtype=torch.long)
    mask[1, 22:31] = 0
    ids = torch.tensor([rows[0], [*rows[1][:22], *[0] * 9, *rows[1][22:]]])
    with VAttentionCache.for_model(mistral, **ROOM) as cache, torch.no_grad():
        parts = []
        for first in range(0, 40, 10):
            end = first + 10
            parts.append(
                mistral(
                    ids[:, first:end], attention_mask=mask[:, :end], past_key_values=cache,
                    position_ids=(mask.cumsum(1) - 1)[:, first:end],
                ).logits
            )  # fmt: skip
        logits = torch.cat(parts, dim=1)
        for row, prompt in enumerate(rows):
            alone = mistral(torch.tensor([prompt]), past_key_values=dynamic(mistral)).logits
            real = mask[row].bool()
            torch.testing.assert_close(logits[row, real], alone[0], atol=1e-4, rtol=0)


def test_beams_and_copies_take_their_windows_along(mistral):
    inputs = left_padded(PROMPTS[:2])
    expected = expect(mistral, inputs, num_beams=3)
    with VAttentionCache.for_model(mistral, **{**ROOM, "max_batch": 6}) as cache:
        result = generate(mistral, inputs, cache, num_beams=3)
    assert torch.equal(result.sequences, expected.sequences)


def test_what_lies_before_the_window_is_refused(mistral):
    prompt = torch.tensor([random_prompts((30,))[0]])
    with VAttentionCache.for_model(mistral, **ROOM) as cache, torch.no_grad():
        mistral(prompt[:, :WINDOW], past_key_values=cache)
        cache.crop(-2)
        mistral(prompt[:, WINDOW - 2 :], past_key_values=cache)
        with pytest.raises(errors.UnsupportedError, match=r"crop\(\) needs tokens from before"):
            cache.crop(-2)
        with pytest.raises(errors.UnsupportedError, match="layer 0 keeps a window"):
            _ = cache.layers[0].keys
        expected = mistral(prompt, past_key_values=dynamic(mistral)).logits
        cache.reset()
        result = mistral(prompt, past_key_values=cache).logits
    torch.testing.assert_close(result, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["Gemma3Text", "Mistral"])
def test_requests_share_prompts_and_say_what_they_would_alone(family):
    """Samples, prompts that part, a chat of several turns: each with the window it needs."""
    # Sixteen tokens a page.
    model = tiny(family, head_dim=128, num_key_value_heads=8, num_attention_heads=8)
    spec = spec_for(model, max_slots=12, max_tokens=256)
    pages = {"page_size": "64K", "layout": "layer"}
    with (
        KVCache(spec, device="cpu", memory="64MiB", **pages) as kv,
        Engine(model, kv, max_prefill_tokens=20) as engine,
    ):
        block = engine.prefixes.block_tokens
        system, *tails = random_prompts((2 * block + 3, block + 5, block + 6, block + 7))

        def ask(prompt, new=TWO_WINDOWS):
            request = engine.submit(prompt, new)
            engine.run()
            # With a mask: what was said may have the token that pads.
            expected = expect(model, left_padded([prompt]), max_new_tokens=new).sequences[0]
            assert [*prompt, *request.output] == expected.tolist()
            return request

        turns = [ask(system + tail) for tail in tails]
        assert [turn.reused for turn in turns] == [0, 0, 2 * block]
        # A chat goes on to the token: the last that was said has no K and V yet.
        for _ in range(2):
            turn = ask([*turns[-1].tokens, 1, 2, 3])
            assert turn.reused == len(turns[-1].tokens) - 1
            turns.append(turn)
        # Other words for the answer: from the prompt's last whole block on.
        assert ask([*turns[0].prompt, 9, 8]).reused == 3 * block
        # Where prompts parted is where one goes on.
        samples = engine.submit_samples(system, 6, n=3)
        engine.run()
        assert [sample.reused for sample in samples] == [2 * block] * 3
        assert len({tuple(sample.output) for sample in samples}) == 1


def test_the_library_says_which_layers_have_windows(mistral):
    spec = spec_for(tiny("Qwen3"), max_slots=2, max_tokens=128)
    assert [(group.layers, group.window) for group in spec.groups] == [
        ((0, 1), None),
        ((2, 3), WINDOW),
    ]
    assert spec_for(mistral, max_slots=2, max_tokens=WINDOW).groups == ()
    other = CacheSpec(
        groups=[LayerGroup(range(4), kv_heads=2, head_dim=16, window=WINDOW - 1)],
        dtype="float32",
        max_slots=2,
        max_tokens=64,
    )
    with (
        KVCache(other, device="cpu", memory="8MiB") as kv,
        pytest.raises(errors.SpecError, match="the window of layer 0=7 and the model needs 8"),
    ):
        Engine(mistral, kv)
