# SPDX-License-Identifier: Apache-2.0
"""`bench rings` and `bench sharing` with a device, on the CPU: what is measured, not how fast."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from pyvattn.bench import rings, sharing
from pyvattn.errors import ConfigError, UnsupportedError

SMALL = {"device": "cpu", "layers": 1, "rows": 2, "tokens": 3000, "rounds": 3}


def test_windows_attend_through_rings_and_on_plain_rows():
    found = {each.name: each for each in rings.measure(rings.Options(**SMALL, kernel=["sdpa"]))}
    for model in ("Gemma-3-27B", "gpt-oss-20b"):
        assert found[f"{model}: driver calls a token and request, rings"].value == 0
        for piece in ("decode, 2 x 3,000 tokens", "a piece of a prompt behind 3,000 tokens"):
            title = f"sdpa, {model}, {piece}"
            for kind in ("plain rows", "rings", "rings / plain rows"):
                assert found[f"{title}: {kind}"].value > 0
            assert found[f"{title}: rings / plain rows"].at_most is None, "no target for a CPU"


def test_rings_refuse_a_kernel_by_name():
    with pytest.raises(UnsupportedError, match="flash-attn-3"):
        list(rings.measure(rings.Options(**SMALL, kernel=["flash-attn-3"])))


@pytest.mark.parametrize("module", [rings, sharing])
def test_a_device_that_is_none(module):
    with pytest.raises(ConfigError, match="device 'gpu'"):
        list(module.measure(module.Options(device="gpu")))


def test_what_prompts_have_in_common_is_computed_once():
    pytest.importorskip("transformers")
    options = sharing.Options(device="cpu", model="tiny", requests=3, common_tokens=2100, rounds=3)
    found = {each.name: each for each in sharing.measure(options)}
    size = "3 requests that share 2,100 of 2,300 tokens"
    # Blocks of as many tokens as fill a page of the smallest layer: the first of them is computed.
    there = found[f"{size}, tokens of prompts that were there"].value
    assert 30 < there <= 100 * 2 * 2100 / (3 * 2300)
    for name in ("shared", "unshared", "shared / unshared"):
        assert found[f"{size}, prompts, {name}"].value > 0
        assert found[f"{size}, prompts, {name}"].at_most is None, "no target for a CPU"
    assert found["fork of 32,000 tokens, host time"].value > 0
