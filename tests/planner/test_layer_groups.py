# SPDX-License-Identifier: Apache-2.0
"""Specs of layers that differ, what requests hold, and the configs that they are read from."""

import json
import pickle

import pytest
from click.testing import CliRunner

from pyvattn import ArgumentError, CacheSpec, ConfigError, LayerError, LayerGroup, SpecError
from pyvattn.cli.app import cli
from pyvattn.planner import guarded_for, held_bytes, plan_parts
from pyvattn.spec_groups import without_idle_windows

M = 1 << 20
WINDOWED = LayerGroup([0, 1, 3, 4], kv_heads=2, head_dim=64, window=100)
FULL = LayerGroup([2, 5], kv_heads=1, head_dim=128)

# As their config.json files have it; window and heads as published.
GPT_OSS_20B = {
    "model_type": "gpt_oss",
    "num_hidden_layers": 24,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "hidden_size": 2880,
    "sliding_window": 128,
    "max_position_embeddings": 131072,
    "layer_types": ["sliding_attention", "full_attention"] * 12,
}
GEMMA_3_27B = {
    "model_type": "gemma3",
    "text_config": {
        "model_type": "gemma3_text",
        "num_hidden_layers": 62,
        "num_attention_heads": 32,
        "num_key_value_heads": 16,
        "head_dim": 128,
        "hidden_size": 5376,
        "sliding_window": 1024,
        "sliding_window_pattern": 6,
    },
}
GEMMA_4_31B = {
    "model_type": "gemma4_text",
    "num_hidden_layers": 60,
    "num_attention_heads": 32,
    "num_key_value_heads": 16,
    "head_dim": 256,
    "global_head_dim": 512,
    "num_global_key_value_heads": 4,
    "attention_k_eq_v": True,
    "sliding_window": 1024,
    "max_position_embeddings": 262144,
    "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 10,
}
PLAIN = {
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "hidden_size": 512,
    "head_dim": 64,
    "sliding_window": 512,
    "max_position_embeddings": 4096,
}


def spec_of(*groups, **fields):
    return CacheSpec(groups=groups or (WINDOWED, FULL), dtype="float32", **fields)


class TestSpec:
    def test_sizes_are_those_of_the_groups_together(self):
        spec = spec_of(max_slots=4, max_tokens=1000, guard_tokens=24)
        assert spec.layers == 6
        assert (spec.kv_heads, spec.head_dim) == (0, 0)
        windowed, full = spec.parts
        assert (windowed.layers, windowed.kv_heads, windowed.head_dim) == (4, 2, 64)
        assert (full.layers, full.kv_heads, full.head_dim) == (2, 1, 128)
        assert spec.token_bytes == 4 * 2 * 2 * 64 * 4 + 2 * 2 * 1 * 128 * 4
        assert spec.row_bytes == 1024 * spec.token_bytes
        assert spec.windows == (100, None)

    def test_a_request_needs_no_more_than_its_windows(self):
        spec = spec_of()
        in_window, in_full = (part.token_bytes for part in spec.parts)
        assert spec.bytes_at(0) == 0
        assert spec.bytes_at(100) == 100 * (in_window + in_full)
        assert spec.bytes_at(101) == 100 * in_window + 101 * in_full

    def test_a_spec_without_groups_is_its_only_part(self):
        spec = CacheSpec(layers=2, kv_heads=2, head_dim=64)
        assert spec.parts == (spec,)
        assert spec.windows == (None,)
        assert spec.bytes_at(10) == 10 * spec.token_bytes
        assert spec.flat() is spec

    def test_every_layer_is_found_in_its_group(self):
        found = [spec_of().group_of(layer) for layer in range(6)]
        assert found == [(0, 0), (0, 1), (1, 0), (0, 2), (0, 3), (1, 1)]
        for wrong in (6, -1, "0"):
            with pytest.raises(LayerError, match=r"0\.\.5"):
                spec_of().group_of(wrong)

    def test_a_guard_is_the_groups_own_or_that_of_the_spec(self):
        own = LayerGroup([0], kv_heads=1, head_dim=8, guard_tokens=0)
        spec = spec_of(own, LayerGroup([1], kv_heads=1, head_dim=8), guard_tokens=64)
        assert [part.guard_tokens for part in spec.parts] == [0, 64]

    def test_layers_that_are_alike_can_do_without_groups(self):
        alike = LayerGroup([2, 5], kv_heads=2, head_dim=64)
        assert spec_of(WINDOWED, alike).flat() == CacheSpec(6, 2, 64, "float32")
        assert spec_of(WINDOWED, alike).tensor_token_bytes == 512
        with pytest.raises(SpecError, match="4 of 2 heads of 64, 2 of 1 heads of 128"):
            spec_of().flat()
        with pytest.raises(SpecError, match="parts"):
            _ = spec_of().tensor_token_bytes

    def test_windows_that_no_request_outgrows_are_none(self):
        alike = LayerGroup([2, 5], kv_heads=2, head_dim=64)
        short = without_idle_windows(spec_of(WINDOWED, alike, max_tokens=100))
        assert short == CacheSpec(6, 2, 64, "float32", max_tokens=100)
        longer = spec_of(WINDOWED, alike, max_tokens=101)
        assert without_idle_windows(longer) == longer

    def test_heads_are_divided_in_each_group(self):
        halved = spec_of().shard(2)
        assert [part.kv_heads for part in halved.parts] == [1, 1]
        assert halved.windows == (100, None)
        with pytest.raises(SpecError, match="kv_heads=3"):
            spec_of(LayerGroup([0], kv_heads=3, head_dim=8)).shard(2)

    def test_it_survives_pickling(self):
        assert pickle.loads(pickle.dumps(spec_of())) == spec_of()

    def test_each_group_lies_where_its_part_lies(self):
        with pytest.raises(SpecError, match="2 groups"):
            spec_of().geometry("layer", "64K")
        single = spec_of(LayerGroup(range(4), kv_heads=2, head_dim=64, window=100))
        assert single.geometry("layer", "64K") == single.parts[0].geometry("layer", "64K")

    @pytest.mark.parametrize(
        ("groups", "message"),
        [
            ([WINDOWED], "layer 2 is in no group"),
            ([WINDOWED, FULL, FULL], "layer 2 is in several groups"),
            ([WINDOWED, "full"], "'full' is not a LayerGroup"),
            ("groups", "groups='groups'"),
            (7, "groups=7"),
        ],
    )
    def test_groups_that_are_none(self, groups, message):
        with pytest.raises(SpecError, match=message):
            CacheSpec(groups=groups)

    @pytest.mark.parametrize(
        ("shared", "message"),
        [
            ({6: 7}, "layer 6 reads layer 7, which is in no group"),
            ({6: 0, 7: 6}, "layer 7 reads layer 6, which is in no group"),
            ({5: 0}, "layer 5 is in several groups"),
            ({7: 0}, "layer 6 is in no group"),
            ({"a": 0}, "'a' and 0 are not numbers"),
            ([6], r"shared=\[6\]"),
        ],
    )
    def test_layers_that_share_what_is_not_there(self, shared, message):
        with pytest.raises(SpecError, match=message):
            spec_of(shared=shared)
        with pytest.raises(SpecError):
            CacheSpec(layers=6, kv_heads=1, head_dim=8, shared=shared)

    def test_layers_that_share_hold_nothing(self):
        alone, spec = spec_of(), spec_of(shared={6: 2, 7: 0})
        assert (spec.layers, spec.kept_layers) == (8, 6)
        assert spec.token_bytes == alone.token_bytes
        assert spec.bytes_at(1000) == alone.bytes_at(1000)
        assert [spec.group_of(layer) for layer in (6, 7)] == [spec.group_of(2), spec.group_of(0)]
        assert [spec.source_of(layer) for layer in (2, 6, 7)] == [2, 2, 0]
        assert [part.layers for part in spec.parts] == [4, 2]
        assert spec.shard(2).shared == spec.shared
        assert pickle.loads(pickle.dumps(spec)) == spec
        assert hash(spec) == hash(spec_of(shared={6: 2, 7: 0}))
        with pytest.raises(SpecError, match="2 layers read the K and V of others"):
            spec_of(WINDOWED, LayerGroup([2, 5], 2, 64), shared={6: 2, 7: 0}).flat()

    @pytest.mark.parametrize("layout", ["layer", "token"])
    def test_v_of_another_width_lies_beside_k(self, layout):
        spec = CacheSpec(layers=4, kv_heads=3, head_dim=48, v_head_dim=32, dtype="float32")
        assert spec.token_bytes_per_layer == 3 * (48 + 32) * 4
        geometry = spec.geometry(layout, "64K")
        assert geometry.arenas == (4 if layout == "layer" else 1)
        assert geometry.token_bytes * geometry.arenas == spec.token_bytes
        taken = set()
        for views in geometry.views:
            for view, width in ((views.k, 48), (views.v, 32)):
                assert view.shape[2:] == (3, width)
                first = view.offset
                here = {(view.arena, byte) for byte in range(first, first + 3 * width * 4)}
                assert not here & taken
                taken |= here
        assert len(taken) == spec.token_bytes

    def test_latent_vectors_in_groups(self):
        latent = LayerGroup([0, 1], kv_heads=1, head_dim=576, latent_dim=512)
        alone = CacheSpec(groups=[latent])
        assert alone.flat() == CacheSpec.mla(layers=2)
        mixed = CacheSpec(groups=[latent, LayerGroup([2], kv_heads=2, head_dim=64)])
        assert [part.kind for part in mixed.parts] == ["mla", "kv"]
        assert mixed.token_bytes == 2 * 576 * 2 + 2 * 2 * 64 * 2
        for wrong in ({"kv_heads": 2}, {"head_dim": 500}, {"v_head_dim": 64}):
            with pytest.raises(SpecError, match="latent"):
                LayerGroup([0], **{"kv_heads": 1, "head_dim": 576, "latent_dim": 512, **wrong})

    def test_a_shape_beside_groups(self):
        with pytest.raises(SpecError, match="layers=7 beside groups, which have 6"):
            spec_of(layers=7)
        with pytest.raises(SpecError, match="kind='mla' beside groups, which have kv"):
            spec_of(kind="mla", latent_dim=8)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"layers": []},
            {"layers": "01"},
            {"layers": [0, 1.5]},
            {"layers": range(1 << 40)},
            {"kv_heads": 0},
            {"head_dim": None},
            {"window": 0},
            {"window": "128"},
            {"guard_tokens": -1},
        ],
    )
    def test_a_group_that_cannot_be(self, wrong):
        with pytest.raises(SpecError, match=next(iter(wrong))):
            LayerGroup(**{"layers": [0], "kv_heads": 1, "head_dim": 8, **wrong})


class TestConfigs:
    @pytest.mark.parametrize(
        ("config", "layers", "windows", "mebibytes"),
        [
            # Worked out apart from this library: the bytes of K and V in the windows.
            (GPT_OSS_20B, [12, 12], (128, None), {12: 0.6, 2_000: 49.9, 100_000: 2347}),
            (GEMMA_3_27B, [52, 10], (1024, None), {12: 5.8, 2_000: 572, 100_000: 8228}),
            (GEMMA_4_31B, [50, 10], (1024, None), {12: 10.3, 2_000: 956, 100_000: 8612}),
        ],
        ids=["gpt-oss-20b", "Gemma-3-27B", "Gemma-4-31B"],
    )
    def test_published_configs(self, config, layers, windows, mebibytes):
        spec = CacheSpec.from_hf_config(config, max_slots=8, dtype="bfloat16")
        assert [part.layers for part in spec.parts] == layers
        assert spec.windows == windows
        for tokens, size in mebibytes.items():
            assert spec.bytes_at(tokens) / M == pytest.approx(size, rel=0.07)

    @pytest.mark.parametrize(
        ("family", "windowed"),
        [
            ({"model_type": "gemma2"}, [0, 2, 4, 6]),
            ({"model_type": "gemma3_text"}, [0, 1, 2, 3, 4, 6, 7]),
            ({"model_type": "gemma3_text", "sliding_window_pattern": 2}, [0, 2, 4, 6]),
            ({"model_type": "cohere2"}, [0, 1, 2, 4, 5, 6]),
            ({"model_type": "gpt_oss"}, [0, 2, 4, 6]),
            ({"model_type": "mistral"}, list(range(8))),
            (
                {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 5},
                [5, 6, 7],
            ),
            (
                {"model_type": "qwen3", "use_sliding_window": True, "max_window_layers": 0},
                [*range(8)],
            ),
            ({"model_type": "qwen3", "use_sliding_window": False, "max_window_layers": 2}, []),
            ({"model_type": "mistral", "sliding_window": None}, []),
            ({"model_type": "mistral", "sliding_window": 4096}, []),
            # The queries of encoders see on both sides; what nobody knows keeps everything.
            ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, []),
            ({"model_type": "llama"}, []),
            (
                {
                    "model_type": "llama",
                    "layer_types": ["sliding_attention"] + ["full_attention"] * 7,
                },
                [0],
            ),
        ],
    )
    def test_which_layers_have_a_window(self, family, windowed):
        spec = CacheSpec.from_hf_config({**PLAIN, **family})
        found = [g.layers for g in spec.groups if g.window == 512]
        assert [layer for layers in found for layer in layers] == windowed
        assert spec.layers == 8

    def test_a_shape_by_hand_keeps_every_token(self):
        config = {**PLAIN, "model_type": "mistral"}
        assert CacheSpec.from_hf_config(config, kv_heads=4).groups == ()
        assert CacheSpec.from_hf_config(config, layers=2, kv_heads=4, head_dim=8).groups == ()

    def test_layers_of_several_shapes_are_groups(self):
        blocks = [{"attention": {"n_heads_in_group": n, "no_op": False}} for n in (8, 4, 8)]
        config = {"model_type": "nemotron-nas", "num_attention_heads": 8, "hidden_size": 64}
        spec = CacheSpec.from_hf_config(
            {**config, "num_hidden_layers": 3, "head_dim": 8, "block_configs": blocks}
        )
        assert [(group.layers, group.kv_heads) for group in spec.groups] == [((0, 2), 1), ((1,), 2)]


class TestPlan:
    def test_all_groups_get_the_same_page_size(self):
        spec = CacheSpec.from_hf_config(GPT_OSS_20B)
        for driver in ("patched", "stock-uvm", "cumem", "host"):
            plans = plan_parts(spec, driver=driver)
            assert [made.spec for made in plans] == list(spec.parts)
            assert len({made.choice.page_size for made in plans}) == 1
            assert not any(made.choice.refused for made in plans)

    def test_the_page_size_can_be_given(self):
        spec = CacheSpec.from_hf_config(GPT_OSS_20B)
        plans = plan_parts(spec, driver="host", page_size="128K", layout="layer")
        found = {(made.choice.page_size, made.choice.layout) for made in plans}
        assert found == {(128 << 10, "layer")}
        with pytest.raises(ConfigError, match="has no pages"):
            plan_parts(spec, driver="cumem", page_size="4K")

    def test_the_guard_of_a_kernel_is_that_of_each_group(self):
        large = LayerGroup([1], kv_heads=4, head_dim=512)
        spec = spec_of(LayerGroup([0], kv_heads=16, head_dim=256, window=1024), large)
        assert [p.guard_tokens for p in guarded_for(spec, "flash-attn-3").parts] == [192, 0]
        assert [p.guard_tokens for p in guarded_for(spec, "torch-varlen").parts] == [0, 0]
        assert guarded_for(CacheSpec(2, 8, 128), "flash-attn-4").guard_tokens == 192
        assert guarded_for(CacheSpec(2, 8, 128), "sdpa").guard_tokens == 0
        one_byte = CacheSpec(2, 8, 128, dtype="float8_e4m3fn")
        assert guarded_for(one_byte, "flash-attn-3").guard_tokens == 224
        assert guarded_for(one_byte, "flash-attn-3-paged").guard_tokens == 0
        with pytest.raises(
            ArgumentError, match=r"kernel='flash'.*flash-attn-3, flash-attn-3-paged"
        ):
            guarded_for(spec, "flash")

    def test_what_is_held_are_the_pages_from_the_window_to_the_guard(self):
        spec = spec_of(max_slots=4, max_tokens=4096, guard_tokens=32)
        geometries = [part.geometry("layer", "4K") for part in spec.parts]
        # 8 tokens of 512 bytes in a page: 301 to 400 lie in pages 37 to 49.
        window, full = 8 * 4096, 4 * 4096
        assert held_bytes(spec, geometries, 400, False) == (50 - 37) * window + 50 * full
        assert held_bytes(spec, geometries, 400, True) == (54 - 37) * window + 54 * full
        assert held_bytes(spec, geometries, 1, False) == window + full
        assert held_bytes(spec, geometries, 0, True) == 0

    def test_the_command_says_what_requests_hold(self, tmp_path):
        path = tmp_path / "config.json"
        path.write_text(json.dumps(GPT_OSS_20B))
        said = CliRunner().invoke(cli, ["plan", str(path), "--memory", "40GiB"]).output
        assert "12 layers, 8 KV heads of 64, keep the last 128 tokens: 24.0 KiB a token" in said
        assert "12 layers, 8 KV heads of 64, keep every token: 24.0 KiB a token" in said
        found = json.loads(CliRunner().invoke(cli, ["plan", str(path), "--json"]).output)
        assert [one["tokens"] for one in found["requests"]] == [12, 2_000, 100_000]
        for one in found["requests"]:
            assert set(one["held"]) == {"patched", "stock-uvm", "cumem", "host"}
            assert all(held >= one["needed"] for held in one["held"].values())

    def test_the_command_plans_with_the_guard_of_a_kernel(self, tmp_path):
        path = tmp_path / "config.json"
        path.write_text(json.dumps(GPT_OSS_20B))
        call = ["plan", str(path), "--driver", "cumem", "--page-size", "2M", "--json"]

        def held(kernel):
            found = json.loads(CliRunner().invoke(cli, [*call, "--kernel", kernel]).output)
            return found["requests"][1]["held"]["cumem"]

        # 192 tokens of 48 KiB, in whole pages.
        assert held("flash-attn-3") - held("torch-varlen") >= 8 << 20
        both = CliRunner().invoke(cli, [*call, "--kernel", "sdpa", "--guard", "0"])
        assert both.exit_code != 0
        assert "--guard" in str(both.exception) + both.output

    def test_more_requests_fit_than_without_windows(self, tmp_path):
        path = tmp_path / "config.json"
        path.write_text(json.dumps(GEMMA_3_27B))
        call = ["plan", str(path), "--memory", "40GiB", "--prompt", "4000", "--json"]
        with_windows = json.loads(CliRunner().invoke(cli, call).output)["fits"]["patched"]
        flat = json.loads(CliRunner().invoke(cli, [*call, "--kv-heads", "16"]).output)["fits"]
        # 52 of 62 layers keep a quarter of 4,105 tokens.
        assert 2.3 < with_windows / flat["patched"] < 2.8

    def test_a_replay_keeps_every_token(self, tmp_path):
        path = tmp_path / "config.json"
        path.write_text(json.dumps(GEMMA_4_31B))
        run = CliRunner().invoke(cli, ["replay", "--config", str(path)])
        assert "50 of 16 heads of 256" in str(run.exception) + run.output
