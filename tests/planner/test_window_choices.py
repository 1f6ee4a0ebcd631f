# SPDX-License-Identifier: Apache-2.0
"""Whether a window is trimmed or kept in a ring: by what calls cost, and what requests hold."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner
from test_layer_groups import GEMMA_3_27B, GEMMA_4_31B, GPT_OSS_20B

from pyvattn import ArgumentError, CacheSpec, KVCache, LayerGroup
from pyvattn.cli.app import cli
from pyvattn.planner import WindowChoice, Workload, plan_parts, window_choices, with_rings

LONG = Workload(64, 8000, 500)


def chosen(config, driver="stock-uvm", workload=LONG, **options):
    """The choice for the layers with a window, and the spec that follows from all."""
    spec = CacheSpec.from_hf_config(config, max_slots=256, max_tokens=32768)
    plans = plan_parts(spec, driver=driver, workload=workload, **options)
    (choice,) = filter(None, window_choices(spec, plans))
    return choice, with_rings(spec, plans)


@pytest.mark.parametrize(
    ("config", "page_size", "calls"),
    [
        (GPT_OSS_20B, "64K", 0.375),
        (GEMMA_3_27B, "64K", 6.5),
        (GEMMA_3_27B, "2M", 0.203),
        (GEMMA_4_31B, "64K", 12.5),
        (GEMMA_4_31B, "2M", 0.391),
    ],
)
def test_trimming_takes_a_call_for_each_page_that_tokens_fill(config, page_size, calls):
    choice, _ = chosen(config, page_size=page_size, layout="layer", growth_pages=(1,))
    assert choice.calls == pytest.approx(calls, rel=0.01)


def test_a_ring_where_calls_cannot_be_hidden():
    choice, spec = chosen(GEMMA_3_27B, page_size="64K", growth_pages=(1,))
    assert choice.ring
    assert choice.trim_share > 0.5
    assert "a ring of 2240 tokens: trimming takes 6.5 map calls a token" in choice.reason
    assert [group.ring for group in spec.groups] == [
        group.window is not None for group in spec.groups
    ]


def test_trimming_where_calls_are_hidden_as_it_holds_less():
    choice, spec = chosen(GEMMA_3_27B, page_size="2M")
    assert not choice.ring
    assert choice.trim_share < 0.5
    assert "can be hidden, and a ring would hold 2240 tokens for 1024" in choice.reason
    assert not any(group.ring for group in spec.groups)
    # Longer steps hide what shorter ones do not.
    few = {"page_size": "64K", "growth_pages": (1,)}
    slow = replace(LONG, weight_bytes=2 << 40)
    assert chosen(GEMMA_3_27B, **few)[0].ring
    assert not chosen(GEMMA_3_27B, workload=slow, **few)[0].ring


def test_requests_that_do_not_outgrow_a_ring_have_none():
    options = {"page_size": "64K", "growth_pages": (1,)}
    short = Workload(64, 2000, 100)
    choice, spec = chosen(GEMMA_3_27B, workload=short, **options)
    assert choice.trim_share > 0.5
    assert choice.reason == "trimmed: requests of 2100 tokens do not outgrow a ring of 2240"
    assert not any(group.ring for group in spec.groups)


def test_a_row_no_longer_than_a_ring_is_none():
    window = LayerGroup([0], kv_heads=8, head_dim=128, window=1000)
    full = LayerGroup([1], kv_heads=8, head_dim=128)
    spec = CacheSpec(groups=[window, full], max_tokens=1800)
    plans = plan_parts(spec, driver="stock-uvm", page_size="64K")
    choice, none = window_choices(spec, plans)
    assert isinstance(choice, WindowChoice)
    assert (choice.ring_tokens, choice.ring, none) == (0, False, None)
    assert "would be longer than a row" in choice.reason


def test_layers_that_are_alike_have_no_choice():
    spec = CacheSpec(32, 8, 128)
    plans = plan_parts(spec, driver="cumem")
    assert window_choices(spec, plans) == (None,)
    assert with_rings(spec, plans) is spec
    with pytest.raises(ArgumentError, match="plans: 0 of them for 1 groups"):
        window_choices(spec, [])


def test_a_cache_of_that_spec_makes_no_call_once_its_windows_are_full():
    window = LayerGroup([0, 1], kv_heads=4, head_dim=64, window=64)
    full = LayerGroup([2], kv_heads=4, head_dim=64)
    spec = CacheSpec(
        groups=[window, full], dtype="float32", max_slots=4, max_tokens=4096, guard_tokens=0
    )
    load = Workload(4, 1000, 1000)
    made = plan_parts(spec, driver="stock-uvm", workload=load, layout="layer", growth_pages=(1,))
    choice = window_choices(spec, made)[0]
    assert choice.ring
    options = {"memory": "32MiB", "page_size": "64K", "layout": "layer", "background": False}
    for planned, calls in ((with_rings(spec, made), 0), (spec, 4)):
        with KVCache(planned, device="cpu", **options) as cache:
            slot = cache.admit(960)
            cache.step({slot: 1025})
            before = cache.stats().map_calls
            # A page of each arena is 64 tokens; the full layer has its pages already.
            cache.prefetch({slot: 1025})
            for length in range(1026, 1090):
                cache.step({slot: length})
            of_full_layer = 2
            assert cache.stats().map_calls - before - of_full_layer == calls


def test_plan_says_which_and_why(tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps(GEMMA_3_27B))
    shown = ["plan", str(config), "--driver", "stock-uvm", "--page-size", "64K", "--prompt", "8000"]
    done = CliRunner().invoke(cli, [*shown, "--max-tokens", "32768"])
    assert done.exit_code == 0, done.output
    assert "Window of 1024 tokens: a ring of 2240 tokens" in " ".join(done.output.split())
    done = CliRunner().invoke(cli, [*shown, "--max-tokens", "32768", "--json"])
    plans = json.loads(done.output)["plans"]
    assert [plan["window"] and plan["window"]["ring"] for plan in plans].count(True) == 1
    assert [plan["window"] for plan in plans].count(None) == 1
