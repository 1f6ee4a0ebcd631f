# SPDX-License-Identifier: Apache-2.0
"""Every causal language model that transformers has, built tiny: what its layers really keep.

``CacheSpec.from_hf_config`` reads the config and the model runs with its own
cache. Both must say the same, or the config must be refused by name.
"""

from __future__ import annotations

import dataclasses
import runpy
from pathlib import Path

import pytest
from tiny_models import VOCABULARY, torch, transformers

from pyvattn import CacheSpec, SpecError
from pyvattn.configs.families import DEFAULTS, VERSION
from pyvattn.integrations.transformers.compat import kinds_and_windows

auto = pytest.importorskip("transformers.models.auto.modeling_auto")
FAMILIES = dict(auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
CONFIGS = transformers.models.auto.configuration_auto.CONFIG_MAPPING
LAYERS = 6
MOST_PARAMETERS = 50_000_000

# Every name that a class may have for the same thing; those that it lacks are left out.
TINY = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), LAYERS),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "emb_dim", "embedding_size"), 64),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 8),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner"), 96),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 128),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts"), 1),
    **dict.fromkeys(("mamba_n_heads", "n_mamba_heads", "mamba_num_heads", "n_groups"), 8),
    **dict.fromkeys(("linear_num_heads", "linear_num_value_heads", "linear_num_key_heads"), 2),
    **dict.fromkeys(("hidden_size_per_layer_input", "moe_shared_expert_intermediate_size"), 32),
    "vocab_size_per_layer_input": VOCABULARY,
    "mamba_head_dim": 16,
    "attention_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_ssm": 128,
    "mamba_d_state": 8,
    "expert_ffn_hidden_size": 32,
    "moe_intermediate_size": 32,
    "num_experts_per_tok": 2,
    "q_lora_rank": 24,
    "vocab_size": VOCABULARY,
    "is_decoder": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
MIXED = ["linear_attention", "full_attention", "linear_attention"] * 2
MORE = {
    "bamba": {"attn_layer_indices": [1, 4]},
    "codegen": {"rotary_dim": 4},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8}},
    "gemma3n_text": {"num_kv_shared_layers": 2, "layer_types": ["full_attention"] * LAYERS},
    "gpt_neo": {"attention_types": [[["global", "local"], LAYERS // 2]]},
    "gptj": {"rotary_dim": 4},
    "granitemoehybrid": {"layer_types": MIXED},
    "helium": {"head_dim": 8},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "kimi_linear": {"layer_types": MIXED},
    "lfm2": {"full_attn_idxs": [1, 4]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"] * 2},
    "minimax": {"layer_types": MIXED},
    "ministral": {"head_dim": 8},
    "nemotron": {"num_key_value_heads": 4},
    "nemotron_h": {"layers_block_type": ["mamba", "moe", "attention", "mlp", "mamba", "attention"]},
    "olmo_hybrid": {"layer_types": MIXED},
    "zamba": {"num_hidden_layers": 10},
    "zamba2": {"layers_block_type": ["mamba", "hybrid", "mamba"] * 2},
    "zaya": {"num_experts_per_tok": 1},
}
# Why the library itself cannot say: no K and V of its own, or no model of this size.
NO_TRUTH = {
    "cohere_compass_text": "its class has no rotary embedding for the layers that it makes",
    "openai-gpt": "the library recomputes every token",
    "xlm": "the library's own cache has no layers",
    "recurrent_gemma": "the model keeps its cache in itself",
}


def tiny(kind, **more):
    """The arguments of a small config of one family: what a config.json might hold."""
    names = {field.name for field in dataclasses.fields(CONFIGS[kind])}
    given = {name: value for name, value in TINY.items() if name in names}
    # What the class has by default is tried wherever it suits 8 query heads.
    if 8 % (DEFAULTS[kind].get("num_key_value_heads") or 8):
        given["num_key_value_heads"] = 8 if "kv_lora_rank" in names else 4
    return {**given, **MORE.get(kind, {}), **more}


def kept(kind, arguments):
    """Return the K and V shapes, [heads, dim] each, of the layers that keep any."""
    config = CONFIGS[kind](**arguments)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    # A release may give a family parts that no argument here makes small.
    if sum(one.numel() for one in model.parameters()) > MOST_PARAMETERS:
        pytest.skip("the model has parts that are not small")
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        cache = model(input_ids=torch.arange(3, 12)[None], use_cache=True).past_key_values
    layers = [layer for layer in cache.layers if getattr(layer, "keys", None) is not None]
    assert not any(hasattr(layer, "indexer_keys") for layer in layers), "more than K and V"
    return [(layer.keys.shape[1::2], layer.values.shape[1::2]) for layer in layers], config


def elements(shapes):
    return sum(heads * dim for pair in shapes for heads, dim in pair)


def read(config):
    spec = CacheSpec.from_hf_config(config, max_slots=2, max_tokens=64, dtype="float32")
    # States are read where a config says all of their sizes, which few arguments here do.
    return dataclasses.replace(spec, states=())


def small_families():
    for kind in FAMILIES:
        if kind in DEFAULTS and kind in CONFIGS and DEFAULTS[kind]:
            yield kind


def read_or_refused(kind, config):
    """Return the spec, or ``None`` where an error names the model or says what to do about it."""
    try:
        return read(config)
    except SpecError as error:
        if "by hand" in str(error) or repr(kind) in str(error):
            return None
        raise


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("kind", sorted(small_families()))
def test_the_spec_says_what_the_models_layers_hold(kind):
    if kind in NO_TRUTH:
        pytest.skip(NO_TRUTH[kind])
    arguments = tiny(kind)
    spec = read_or_refused(kind, {**arguments, "model_type": kind})
    if spec is None:
        return
    shapes, config = kept(kind, arguments)
    assert (spec.kept_layers, spec.token_bytes) == (len(shapes), elements(shapes) * spec.itemsize)
    # The config as the library writes it has more keys: it says the same, or is not understood.
    assert read_or_refused(kind, config.to_dict()) in (spec, None)


def windows_read(config):
    """Return the window of each layer as a spec has it; ``None`` where the config is refused."""
    try:
        spec = CacheSpec.from_hf_config(config, max_slots=2, max_tokens=1 << 19)
    except SpecError:
        return None
    return [spec.window_of(layer) for layer in range(spec.layers) if layer not in spec.shared]


def families_with_a_window():
    for kind in small_families():
        if "sliding_window" in {field.name for field in dataclasses.fields(CONFIGS[kind])}:
            yield kind


@pytest.mark.parametrize("kind", sorted(families_with_a_window()))
def test_layers_with_a_window_are_those_of_the_library(kind):
    # The newest library finds no layer that Gemma 3n's shared ones of the default list could read.
    listed = kind == "gemma3n_text"
    arguments = {name: n for name, n in tiny(kind).items() if listed or name != "layer_types"}
    config = CONFIGS[kind](**arguments)
    theirs, wanted = kinds_and_windows(config)
    if not {*theirs} <= {"sliding_attention", "full_attention"}:
        pytest.skip("the library has layers of other kinds in it")
    window = next(filter(None, wanted), None)
    read = windows_read(config.to_dict())
    assert read in (wanted, None)
    # Files of earlier releases have a window and no list: no layer may keep less than it needs.
    earlier = windows_read({**arguments, "model_type": kind, "sliding_window": window})
    for ours, needed in zip(earlier or wanted, wanted, strict=True):
        assert ours in (needed, None)


def test_few_families_are_refused():
    """A reader that refuses everything says nothing wrong, and is of no use."""
    names = [kind for kind in small_families() if kind not in NO_TRUTH]
    specs = [read_or_refused(kind, {**tiny(kind), "model_type": kind}) for kind in names]
    assert len(names) - specs.count(None) > 0.8 * len(names)


def test_the_table_of_defaults_is_what_transformers_says():
    path = Path(__file__).parents[2] / "scripts/generate_families.py"
    if transformers.__version__ != VERSION:
        pytest.skip(f"the table is of transformers {VERSION}")
    script = runpy.run_path(str(path))
    assert script["generated"]() in script["FILE"].read_text(encoding="utf-8")
