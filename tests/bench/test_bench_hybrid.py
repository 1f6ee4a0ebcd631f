# SPDX-License-Identifier: Apache-2.0
"""What `bench hybrid` counts, against what vLLM's own code gave for the same models."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pyvattn import ConfigError, KVCache, LayerGroup, SpecError, StateGroup
from pyvattn.bench.block_groups import BlockLayout
from pyvattn.bench.hybrid import MODELS, Options, block_layout, measure
from pyvattn.planner import held_bytes
from pyvattn.spec import CacheSpec

# MiB by tokens, from vLLM 0.33's KVCacheManager, run on the models' layers.
VLLM = {
    "gpt-oss-20b": {12: 0.8, 200: 8.2, 2000: 49.9, 20000: 472, 100000: 2347},
    "gpt-oss-120b": {12: 1.1, 200: 12.4, 2000: 74.8, 20000: 708, 100000: 3520},
    "Gemma-3-27B": {12: 8.8, 200: 114, 2000: 636, 20000: 2042, 100000: 8292},
    "Gemma-4-31B": {12: 15.0, 200: 180, 2000: 958, 20000: 2362, 100000: 8612},
    "Gemma-4-26B-A4B": {12: 3.8, 200: 45.0, 2000: 239, 20000: 591, 100000: 2153},
    "Qwen3-Next-80B-A3B": {12: 54.0, 200: 54.0, 2000: 94.5, 20000: 513, 100000: 2390},
    "Qwen3.5-27B": {12: 208, 200: 208, 2000: 312, 20000: 1456, 100000: 6448},
    "Nemotron-3-Nano-30B-A3B": {12: 61.4, 200: 61.4, 2000: 61.4, 20000: 172, 100000: 639},
    "Nemotron-3-Super-120B-A12B": {12: 195, 200: 195, 2000: 195, 20000: 325, 100000: 975},
}
# The most while the prompt was computed in chunks of 8,192.
PEAKS = {
    "gpt-oss-20b": {12: 0.8, 200: 9.8, 2000: 93.8, 20000: 579, 100000: 2499},
    "gpt-oss-120b": {12: 1.1, 200: 14.6, 2000: 141, 20000: 868, 100000: 3748},
    "Gemma-3-27B": {12: 8.8, 200: 114, 2000: 1094, 20000: 5600, 100000: 12000},
    "Gemma-4-31B": {12: 15.0, 200: 180, 2000: 1720, 20000: 8480, 100000: 14880},
    "Gemma-4-26B-A4B": {12: 3.8, 200: 45.0, 2000: 430, 20000: 2120, 100000: 3720},
}
# Its groups and the bytes of its blocks.
GROUPS = {
    "gpt-oss-20b": ([(1, 16), (1, 16)], 393_216),
    "gpt-oss-120b": ([(1, 16), (1, 16)], 589_824),
    "Gemma-3-27B": ([(6, 16), (1, 16)], 1_310_720),
    "Gemma-4-31B": ([(5, 16), (1, 32)], 2_621_440),
    "Gemma-4-26B-A4B": ([(5, 16), (1, 32)], 655_360),
    # Those of layers that keep tokens, then those of states.
    "Qwen3-Next-80B-A3B": ([(1, 576), (3, 576)], 14_155_776),
    "Qwen3.5-27B": ([(1, 832), (3, 832)], 54_525_952),
    "Nemotron-3-Nano-30B-A3B": ([(1, 2096), (4, 2096)], 12_877_824),
    "Nemotron-3-Super-120B-A12B": ([(1, 4160), (5, 4160)], 34_078_720),
}


@pytest.mark.parametrize("model", MODELS)
def test_blocks_are_those_of_vllm(model):
    layout = block_layout(model)
    assert ([(k.groups, k.block_tokens) for k in layout.kinds], layout.block_bytes) == GROUPS[model]
    for tokens, mib in VLLM[model].items():
        exact = layout.bytes_at(tokens) / 2**20
        assert exact == pytest.approx(mib, abs=0.0501 if mib < 100 else 0.501), tokens


# What vLLM 0.33's own functions gave for a layer, and the layers.
STATES = {
    "Qwen3-Next-80B-A3B": (36, 1_097_728),
    "Qwen3.5-27B": (48, 3_207_168),
    "Nemotron-3-Nano-30B-A3B": (23, 2_134_016),
    "Nemotron-3-Super-120B-A12B": (40, 4_255_744),
}


@pytest.mark.parametrize("model", STATES)
def test_states_are_those_of_vllm(model):
    (group,) = MODELS[model].states
    assert (len(group.layers), group.layer_bytes) == STATES[model]


def test_drafted_tokens_take_a_state_each():
    """27B at 12 tokens, by vLLM: 208 MiB without drafts, 364 with one, 676 with three."""
    spec = MODELS["Qwen3.5-27B"]
    for drafts, mib in ((0, 208), (1, 364), (3, 676)):
        states = [replace(spec.states[0], copies=1 + drafts)]
        layout = BlockLayout.of(replace(spec, states=states), 64)
        assert layout.bytes_at(12) == mib << 20


def test_rules_that_are_not_written_down_are_refused():
    two = [StateGroup([i], {"conv": ((3, 64), "float32")}) for i in range(2)]
    with pytest.raises(SpecError, match="1 groups of layers and 2 of states"):
        BlockLayout.of(CacheSpec(2, 2, 64, states=two))
    with pytest.raises(ConfigError, match="'Gemma-9'"):
        block_layout("Gemma-9")


@pytest.mark.parametrize("model", PEAKS)
def test_peaks_are_those_of_vllm(model):
    layout = BlockLayout.of(MODELS[model])
    for tokens, mib in PEAKS[model].items():
        exact = layout.peak_bytes(tokens, 8192) / 2**20
        assert exact == pytest.approx(mib, abs=0.0501 if mib < 100 else 0.501), tokens


def test_layers_that_are_alike_are_one_group():
    layout = BlockLayout.of(CacheSpec.mla(layers=61))
    assert layout.block_bytes == 1_124_352
    assert layout.bytes_at(2000) == 125 * 1_124_352


def test_kinds_of_nearly_as_many_layers_are_padded_to_the_larger():
    groups = [LayerGroup(range(10), 1, 64, window=64), LayerGroup(range(10, 24), 1, 64)]
    layout = BlockLayout.of(CacheSpec(groups=groups, max_slots=1))
    assert [kind.groups for kind in layout.kinds] == [1, 1]
    assert layout.block_bytes == 14 * 16 * 256


@pytest.fixture(scope="module")
def found():
    return {each.name: each for each in measure(Options(rounds=5))}


@pytest.mark.parametrize("model", ["gpt-oss-20b", "Gemma-3-27B"])
def test_rows_hold_what_a_cache_holds(found, model):
    spec = CacheSpec(groups=MODELS[model].groups, max_slots=1, max_tokens=4096, guard_tokens=0)
    with KVCache(
        spec, device="cpu", page_size="64K", layout="layer", memory="8GiB",
        accounting=True, background=False, read_ahead=0,
    ) as cache:  # fmt: skip
        slot = cache.admit(1999)
        cache.step({slot: 2000})
        held = cache.live_pages()[slot] * cache.page_size
    assert found[f"{model}, 2,000 tokens, rows"].value == held / 2**20


def test_guards_are_those_of_each_group(found):
    def guard(model):
        rows, guarded = "12 tokens, rows", "12 tokens, rows guarded for flash-attn-3"
        return found[f"{model}, {guarded}"].value - found[f"{model}, {rows}"].value

    # 192 tokens of 1 KiB in 48 arenas: three pages.
    assert guard("gpt-oss-20b") == 48 * 3 * 64 / 1024
    # Layers of head dim 512 have a kernel without: 192 tokens of 8 KiB in 100 arenas, 24 pages.
    assert guard("Gemma-4-31B") == 100 * 24 * 64 / 1024


def test_layers_side_by_side_leave_kernels_16_tokens_of_each_in_a_page(found):
    """gpt-oss: 2 KiB a token and layer, so two layers; Gemma-3: 8 KiB, so K and V are apart."""
    spec = CacheSpec(groups=MODELS["gpt-oss-20b"].groups, max_slots=1, guard_tokens=0)
    geometries = [part.geometry("token", "64K", 2) for part in spec.parts]
    assert all(geometry.tokens_per_page == 16 for geometry in geometries)
    held = held_bytes(spec, geometries, 2000, private_guard=True)
    close = "2,000 tokens, rows with layers side by side"
    assert found[f"gpt-oss-20b, {close}"].value == held / 2**20
    assert found[f"Gemma-3-27B, {close}"].value == found["Gemma-3-27B, 2,000 tokens, rows"].value


def test_more_fit_where_less_is_held(found):
    for model in MODELS:
        rows, guarded = f"{model}, rows", f"{model}, rows guarded for flash-attn-3"
        assert found[rows].value >= found[guarded].value > 0
        least = 1.1 if model in STATES else 1.0
        assert found[f"{rows} / vLLM's blocks"].at_least == least
    assert found["Gemma-3-27B, rows / vLLM's blocks"].ok
    assert "SYNTHETIC" in found["Gemma-3-27B, rows"].note


def test_memory_for_less_than_two_requests_is_refused():
    with pytest.raises(ConfigError, match="memory='1GiB'"):
        list(measure(Options(memory="1GiB")))


@pytest.mark.parametrize("model", ["gpt-oss-20b", "Gemma-3-27B"])
def test_a_prompt_never_holds_more_than_its_rings(found, model):
    groups = [replace(each, ring=each.window is not None) for each in MODELS[model].groups]
    spec = CacheSpec(groups=groups, max_slots=1, max_tokens=20_000, guard_tokens=0)
    with KVCache(
        spec, device="cpu", page_size="64K", layout="layer", memory="8GiB",
        accounting=True, background=False, read_ahead=0,
    ) as cache:  # fmt: skip
        slot, peak = cache.acquire(20_000), 0
        for first in range(0, 20_000, 8_192):
            cache.step({slot: min(first + 8_192, 20_000)})
            peak = max(peak, cache.stats().pages_live * cache.page_size)
    assert found[f"{model}, peak, rows with rings"].value == peak / 2**20


def test_rings_hold_less_than_half_of_what_blocks_do(found):
    share = found["Gemma-3-27B, peak, rows with rings / vLLM's blocks"]
    assert share.at_most == 0.45
    assert share.ok
