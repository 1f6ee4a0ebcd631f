# SPDX-License-Identifier: Apache-2.0
"""States of a fixed size: what they take, and the configs that they are read from."""

import json
import pickle

import pytest
from click.testing import CliRunner

from pyvattn import CacheSpec, LayerGroup, SpecError, StateGroup
from pyvattn.cli.app import cli
from pyvattn.planner import held_bytes, plan_parts

CONV = {"conv": ((3, 64), "bfloat16")}
BOTH = {**CONV, "recurrent": ((4, 16, 8), "float32")}
STATES = StateGroup(range(3), BOTH)
LAYER = 3 * 64 * 2 + 4 * 16 * 8 * 4


def spec_of(**fields):
    return CacheSpec(**{"layers": 2, "kv_heads": 2, "head_dim": 64, "states": [STATES], **fields})


def test_a_state_has_the_bytes_of_its_tensors():
    assert STATES.layer_bytes == LAYER
    assert STATES.bytes == 3 * LAYER
    assert StateGroup([0], BOTH, copies=4).bytes == 4 * LAYER
    assert pickle.loads(pickle.dumps(STATES)) == STATES
    assert hash(STATES) == hash(StateGroup([0, 1, 2], BOTH))


def test_states_are_counted_once_a_request_and_not_a_token():
    spec, alone = spec_of(), spec_of(states=())
    assert spec.state_bytes == 3 * LAYER
    assert spec.token_bytes == alone.token_bytes
    assert spec.bytes_at(0) == 0
    assert spec.bytes_at(100) == alone.bytes_at(100) + 3 * LAYER
    assert spec.parts == (alone,)
    assert spec.geometry("layer", "64K") == alone.geometry("layer", "64K")


def test_states_may_stand_among_the_groups():
    full = LayerGroup([0, 1], kv_heads=2, head_dim=64)
    mixed = CacheSpec(groups=[full, STATES])
    assert (mixed.groups, mixed.states) == ((full,), (STATES,))
    assert mixed.flat() == spec_of()
    assert mixed.parts[0].states == ()
    with pytest.raises(SpecError, match="in one of the two"):
        CacheSpec(groups=[full, STATES], states=[STATES])
    assert CacheSpec(2, 2, 64, groups=[STATES]) == spec_of()


def test_a_request_holds_its_states_in_whole_pages():
    spec, alone = spec_of(), spec_of(states=())
    pages = [spec.geometry("layer", "4K")]
    more = held_bytes(spec, pages, 100, False) - held_bytes(alone, pages, 100, False)
    assert 3 * LAYER <= more < 3 * LAYER + 4096
    assert more % 4096 == 0
    assert held_bytes(spec, pages, 0, False) == 0
    assert plan_parts(spec, driver="host")[0].spec == alone


def test_heads_and_channels_are_divided():
    halved = spec_of().shard(2)
    assert halved.states[0].tensors == {
        "conv": ((3, 32), "bfloat16"),
        "recurrent": ((2, 16, 8), "float32"),
    }
    with pytest.raises(SpecError, match=r"'recurrent' of \[4, 16, 8\].*8 ranks"):
        spec_of(kv_heads=8).shard(8)
    with pytest.raises(SpecError, match="ranks=0"):
        STATES.shard(0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": []}, "layers=\\(\\) of a StateGroup"),
        ({"tensors": {}}, "tensors={} of a StateGroup"),
        ({"tensors": {"conv": 7}}, "'conv' is 7"),
        ({"tensors": {"conv": ((), "float32")}}, "'conv'"),
        ({"tensors": {"conv": ((0, 3), "float32")}}, "'conv'"),
        ({"tensors": {"conv": ((3,), "int8")}}, "int8"),
        ({"tensors": {"": ((3,), "float32")}}, "no name"),
        ({"copies": 0}, "copies=0"),
    ],
)
def test_groups_that_are_none(arguments, message):
    with pytest.raises(SpecError, match=message):
        StateGroup(**{"layers": [0], "tensors": CONV, **arguments})


@pytest.mark.parametrize("states", [[STATES, STATES], [StateGroup([1], CONV)], "states", 7, [7]])
def test_states_that_are_none(states):
    with pytest.raises(SpecError, match="tate"):
        spec_of(states=states)


# As their config.json files have it. What vLLM 0.33 holds for one layer: see test_bench_hybrid.
ATTENDS = {"num_attention_heads": 16, "hidden_size": 2048, "max_position_embeddings": 4096}
QWEN3_NEXT = {
    **ATTENDS,
    "model_type": "qwen3_next",
    "num_hidden_layers": 48,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "full_attention_interval": 4,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
}
QWEN3_5_27B = {
    **QWEN3_NEXT,
    "model_type": "qwen3_5_text",
    "num_hidden_layers": 64,
    "num_key_value_heads": 4,
    "linear_num_value_heads": 48,
    "mamba_ssm_dtype": "float32",
}
NEMOTRON_3_NANO = {
    **ATTENDS,
    "model_type": "nemotron_h",
    "num_hidden_layers": 52,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "hybrid_override_pattern": "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
    "mamba_num_heads": 64,
    "mamba_head_dim": 64,
    "n_groups": 8,
    "ssm_state_size": 128,
    "conv_kernel": 4,
    "mamba_ssm_cache_dtype": "float32",
}
BAMBA_9B = {
    **ATTENDS,
    "model_type": "bamba",
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_size": 4096,
    "attn_layer_indices": [9, 18, 27],
    "mamba_n_heads": 128,
    "mamba_d_head": "auto",
    "mamba_d_state": 128,
    "mamba_n_groups": 1,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
}
LFM2 = {
    **ATTENDS,
    "model_type": "lfm2",
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "full_attn_idxs": [2, 5, 8, 10, 12, 14],
    "conv_L_cache": 3,
}
KIMI_LINEAR = {
    **ATTENDS,
    "model_type": "kimi_linear",
    "num_hidden_layers": 8,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "linear_attn_config": {
        "full_attn_layers": [4, 8],
        "kda_layers": [1, 2, 3, 5, 6, 7],
        "num_heads": 32,
        "head_dim": 128,
        "short_conv_kernel_size": 4,
    },
}
READ = {
    "Qwen3-Next": (QWEN3_NEXT, 36, 1_097_728),
    "Qwen3.5-27B": (QWEN3_5_27B, 48, 3_207_168),
    "Nemotron-3-Nano": (NEMOTRON_3_NANO, 23, 2_134_016),
    "Bamba-9B": (BAMBA_9B, 29, (3 * (8192 + 256) + 128 * 64 * 128) * 2),
    "LFM2-1.2B": (LFM2, 10, 2 * 2048 * 2),
    "Kimi-Linear": (KIMI_LINEAR, 6, 3 * 3 * 4096 * 2 + 32 * 128 * 128 * 4),
}


@pytest.mark.parametrize(("config", "layers", "layer_bytes"), READ.values(), ids=READ)
def test_states_are_read(config, layers, layer_bytes):
    (group,) = CacheSpec.from_hf_config(config).states
    assert (len(group.layers), group.layer_bytes) == (layers, layer_bytes)


def test_states_of_sizes_that_are_not_said_are_not_guessed():
    config = {name: n for name, n in QWEN3_NEXT.items() if name != "linear_key_head_dim"}
    assert CacheSpec.from_hf_config(config).states == ()


def test_plan_says_what_states_take(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(QWEN3_5_27B))
    said = CliRunner().invoke(cli, ["plan", str(path), "--driver", "cumem"]).output
    assert "48 layers with a state of 3.06 MiB: 147 MiB a request" in said
    found = CliRunner().invoke(cli, ["plan", str(path), "--driver", "cumem", "--json"]).output
    (short, _) = json.loads(found)["requests"]
    assert short["needed"] == 48 * 3_207_168 + 12 * 16 * 4096
