"""The bench that serves the same requests through both caches, at a size for the CPU."""

from __future__ import annotations

import pytest
from tiny_models import torch

from pyvattn.bench import random_model
from pyvattn.bench.transformers import Options, Run, measure
from pyvattn.errors import ConfigError, DriverUnavailable

pytest.importorskip("psutil", reason="transformers counts the host's memory with psutil")

SMALL = {"model": "tiny", "device": "cpu", "requests": 3, "prompt_tokens": 20, "new_tokens": 8}


@pytest.mark.filterwarnings("ignore")  # the library's own
def test_both_caches_give_the_same_tokens_and_every_rate_is_there():
    found = {measure.name: measure for measure in measure(Options(**SMALL))}
    size = "3 x (20 + 8) tokens"
    theirs = "transformers, paged|sdpa"
    for title in ("while all decode", "whole run"):
        ours = found[f"ours, {size}: output, {title}"]
        library = found[f"{theirs}, {size}: output, {title}"]
        ratio = found[f"ours / {theirs}, {size}: output, {title}"]
        assert ratio.value == pytest.approx(ours.value / library.value)
        assert ratio.ok is None, "a target is for the model of the target only"
        assert "no CUDA graph" in ours.note
    assert found["requests with the same tokens from both"].ok is True
    # A tiny layer has 64 x (64 + 2 x 16 + 64) + 3 x 64 x 96 weights and two norms of 64; the head
    # 64 x 97. Each token of K and V takes 2 x 2 x 8 numbers a layer.
    weights = 4 * (3 * (64 * 160 + 3 * 64 * 96 + 2 * 64) + 64 + 64 * 97)
    kv = 3 * (20 + 8 / 2) * 4 * 3 * 2 * 2 * 8
    rate = found[f"ours, {size}: output, while all decode"].value / 3
    read = found["ours: weights and KV read while all decode"].value
    assert read == pytest.approx((weights + kv) * rate / 1e9)
    work = 3 * 20 * (2 * 3 * (64 * 160 + 3 * 64 * 96 + 2 * 64) + 2 * 20 * 64 * 3)
    seconds = found[f"ours, {size}: all prompts"].value
    done = found["ours: arithmetic until every prompt is done"].value
    assert done == pytest.approx(work / seconds / 1e12)


def test_rates_count_the_tokens_of_the_moments_that_they_are_about():
    """One request starts at 1 s and one at 3 s; from 3 to 6 s both decode."""
    run = Run([[7] * 6, [7] * 5], [[11, 12, 13, 14, 15, 16], [13, 14, 15, 16, 17]], began=10)
    assert run.first == 3
    assert run.decode == pytest.approx(6 / 3)
    assert run.whole == pytest.approx(11 / 7)


def test_a_run_in_which_never_all_decode_has_no_such_rate():
    run = Run([[7] * 2, [7] * 2], [[1, 2], [2, 3]], began=0)
    with pytest.raises(ConfigError, match="--new-tokens"):
        assert run.decode


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "gpt-5"}, "gpt-5"),
        ({"new_tokens": 1}, "new_tokens=1"),
        ({"device": "tpu"}, "tpu"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ConfigError, match=message):
        list(measure(Options(**{**SMALL, **options})))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_the_official_size_needs_a_gpu():
    with pytest.raises(DriverUnavailable, match="NVIDIA"):
        list(measure(Options()))


def test_models_and_prompts_are_seeded():
    one, two = (random_model.make_model("tiny", "cpu", seed=5) for _ in range(2))
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)
    assert one.dtype == torch.float32
    assert random_model.make_prompts("tiny", 2, 9) == random_model.make_prompts("tiny", 2, 9)
    assert random_model.SHAPES["llama-3-8b"].dtype == "bfloat16"
