# SPDX-License-Identifier: Apache-2.0
"""Finds out what each layer of a model keeps: K and V, a state, both, or nothing.

A config says it in one of many ways. Each reader below knows one of them and
returns a kind for every layer, or ``None`` where the config does not say it
that way. Kinds have the names that transformers gives them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pyvattn.configs.families import ALL_HYBRID, MIXED, STATE_ONLY, WITHOUT_A_LIST
from pyvattn.configs.fields import LAYERS, Fields
from pyvattn.errors import SpecError

FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"
STATE, NOTHING, CROSS = "linear_attention", "mlp", "cross_attention"
HYBRID, HYBRID_SLIDING = "hybrid", "hybrid_sliding"

# Kinds that keep a K and a V of their own for every token. One with a window
# keeps them no longer than that, where the cache can give them up.
KEEPS_KV = frozenset({FULL, SLIDING, CHUNKED, HYBRID, HYBRID_SLIDING})
WINDOWED = frozenset({SLIDING, CHUNKED, HYBRID_SLIDING})
KEEPS_STATE = frozenset({STATE, HYBRID, HYBRID_SLIDING})

# What else configs call them.
_KINDS = {
    **{kind: kind for kind in (*KEEPS_KV, STATE, NOTHING)},
    "attention": FULL,
    "global": FULL,
    "local": SLIDING,
    "mamba": STATE,
    "mamba2": STATE,
    "recurrent": STATE,
    "conv": STATE,
    "ssm": STATE,
    "moe": NOTHING,
    "dense": NOTHING,
    "sparse": NOTHING,
}
# Nemotron-H writes a letter for each layer.
_LETTERS = {"*": FULL, "M": STATE, "-": NOTHING, "E": NOTHING}

Kinds = list[str]


def layer_kinds(fields: Fields) -> Kinds:
    """Return the kind of every layer, first to last.

    Raises :class:`~pyvattn.errors.SpecError` where layers differ and nothing
    says which is which, and where two fields say different things.
    """
    if fields.model_type in STATE_ONLY:
        raise SpecError(
            f"models of type {fields.model_type!r} keep no K and V for their tokens, so a KV cache "
            "has nothing to hold: run them with what the library keeps for them"
        )
    found = [(name, kinds) for name, read in _READERS.items() if (kinds := read(fields))]
    if not found:
        kinds = _all_alike(fields)
    else:
        name, kinds = found[0]
        _check_length(fields, name, kinds)
        for other, theirs in found[1:]:
            if [kind in KEEPS_KV for kind in theirs] != [kind in KEEPS_KV for kind in kinds]:
                raise SpecError(
                    f"{name} and {other} of the model config name different layers that attend"
                )
    return kinds


def _all_alike(fields: Fields) -> Kinds:
    if fields.model_type in ALL_HYBRID:
        return [HYBRID] * fields.need(*LAYERS)
    if fields.model_type in MIXED | WITHOUT_A_LIST:
        raise SpecError(
            f"layers of models of type {fields.model_type!r} differ, and the config has no "
            "layer_types: give layers, kv_heads and head_dim by hand"
        )
    if fields.model_type == "hrm_text" and fields.find("num_layers_per_stack") is None:
        raise SpecError(
            "num_hidden_layers of this hrm_text config may be those of one stack, as it has no "
            "num_layers_per_stack: give layers, kv_heads and head_dim by hand"
        )
    # LongCat's layers attend twice.
    if fields.model_type == "longcat_flash":
        return [FULL] * (2 * fields.need("num_layers"))
    return [FULL] * fields.need(*LAYERS)


def _check_length(fields: Fields, name: str, kinds: Kinds) -> None:
    layers = fields.count(*LAYERS) if any(key in fields.given for key in LAYERS) else None
    if layers not in (None, len(kinds)):
        raise SpecError(
            f"{name} of the model config describes {len(kinds)} layers, and there are {layers}"
        )


def _named(name: str) -> Callable[[Fields], Kinds | None]:
    def read(fields: Fields) -> Kinds | None:
        kinds = fields.find(name)
        return _list(name, kinds, _kind) if isinstance(kinds, (list, tuple)) and kinds else None

    return read


def _kind(name: str, value: Any) -> str:
    if not isinstance(value, str) or value not in _KINDS:
        raise SpecError(
            f"{name} of the model config names layers of {value!r}, whose cache is not known: "
            "give layers, kv_heads and head_dim by hand"
        )
    return _KINDS[value]


def _list(name: str, values: Iterable[Any], each: Callable[[str, Any], str]) -> Kinds:
    return [each(name, value) for value in values]


def _pattern(fields: Fields) -> Kinds | None:
    letters = fields.find("hybrid_override_pattern")
    if not isinstance(letters, str):
        return None

    def one(name: str, letter: str) -> str:
        if letter not in _LETTERS:
            raise SpecError(f"{name} of the model config has the letter {letter!r}: unknown")
        return _LETTERS[letter]

    return _list("hybrid_override_pattern", letters, one)


def _switches(name: str, on: str, off: str) -> Callable[[Fields], Kinds | None]:
    """Read a list with a 1 for each layer of one kind and a 0 for each of the other."""

    def one(_: str, value: Any) -> str:
        if value not in (0, 1):
            raise SpecError(f"{name} of the model config has {value!r} where 0 or 1 is known")
        return on if value else off

    def read(fields: Fields) -> Kinds | None:
        values = fields.find(name)
        return _list(name, values, one) if isinstance(values, list) and values else None

    return read


def _indices(name: str, first: int = 0) -> Callable[[Fields], Kinds | None]:
    """Read a list of the layers that attend, the others keeping a state."""

    def read(fields: Fields) -> Kinds | None:
        values = fields.find(name)
        if not isinstance(values, list):
            return None
        return _chosen(name, values, fields.need(*LAYERS), first, on=FULL, off=STATE)

    return read


def _chosen(name: str, values: list[Any], layers: int, first: int, on: str, off: str) -> Kinds:
    places = {value - first for value in values if isinstance(value, int)}
    if len(places) != len(values) or not places <= set(range(layers)):
        raise SpecError(f"{name}={values!r} of the model config are not layers of {layers}")
    return [on if i in places else off for i in range(layers)]


def _kimi(fields: Fields) -> Kinds | None:
    config = fields.find("linear_attn_config")
    if not isinstance(config, Mapping) or "full_attn_layers" not in config:
        return None
    name, layers = "linear_attn_config.full_attn_layers", fields.need(*LAYERS)
    kinds = _chosen(name, list(config["full_attn_layers"]), layers, 1, on=FULL, off=STATE)
    states = list(config.get("kda_layers", []))
    if len(states) + kinds.count(FULL) != layers:
        raise SpecError(
            f"linear_attn_config of the model config names {kinds.count(FULL)} + {len(states)} "
            f"layers, and there are {layers}"
        )
    return kinds


def _nas(fields: Fields) -> Kinds | None:
    """Read Nemotron-NAS: each layer has a description of its own."""
    blocks = fields.find("block_configs")
    if not isinstance(blocks, list):
        return None
    return _list("block_configs", blocks, _nas_kind)


def _nas_kind(name: str, block: Any) -> str:
    attention = block.get("attention") if isinstance(block, Mapping) else None
    if not isinstance(attention, Mapping):
        raise SpecError(f"{name} of the model config has a layer without `attention`")
    if attention.get("no_op") or attention.get("replace_with_linear"):
        return NOTHING
    return SLIDING if attention.get("window_length") else FULL


def _interval(fields: Fields) -> Kinds | None:
    every = fields.count("full_attention_interval")
    if every is None or fields.find("layer_types"):
        return None
    return [STATE if (i + 1) % every else FULL for i in range(fields.need(*LAYERS))]


def _period(fields: Fields) -> Kinds | None:
    """Read Jamba's period and offset; Zamba's begin after three layers of its own."""
    every = fields.count("attn_layer_period")
    if every is None:
        return None
    offset, layers = fields.optional("attn_layer_offset"), fields.need(*LAYERS)
    if fields.model_type != "zamba":
        return [FULL if i % every == offset else STATE for i in range(layers)]
    rest = [HYBRID if i % every == offset else STATE for i in range(layers - 3)]
    return [STATE, STATE, HYBRID, *rest]


def _repeated(fields: Fields) -> Kinds | None:
    """Read RecurrentGemma: a few kinds, over and over. Its attention has a window."""
    few = fields.find("block_types", "_block_types")
    if not isinstance(few, (list, tuple)) or not few:
        return None
    kinds = _list("block_types", few, _kind)
    kinds = [SLIDING if kind == FULL else kind for kind in kinds]
    return [kinds[i % len(kinds)] for i in range(fields.need(*LAYERS))]


def _nested(fields: Fields) -> Kinds | None:
    """Read GPT-Neo: pairs of a few kinds, and how often they come."""
    groups = fields.find("attention_types")
    if not isinstance(groups, list):
        return None
    kinds: Kinds = []
    for few, times in groups:
        kinds += _list("attention_types", few, _kind) * times
    return kinds


def _crossing(fields: Fields) -> Kinds | None:
    """Read Mllama: some layers attend to images and keep nothing of the text."""
    values = fields.find("cross_attention_layers")
    if not isinstance(values, list):
        return None
    layers = fields.need(*LAYERS)
    return _chosen("cross_attention_layers", values, layers, 0, on=CROSS, off=FULL)


# The first that a config has is taken; the others must agree with it.
_READERS: dict[str, Callable[[Fields], Kinds | None]] = {
    "layer_types": _named("layer_types"),
    "layers_block_type": _named("layers_block_type"),
    "attention_layers": _named("attention_layers"),
    "attention_types": _nested,
    "hybrid_override_pattern": _pattern,
    "hybrid_layer_pattern": _switches("hybrid_layer_pattern", on=SLIDING, off=FULL),
    "attn_type_list": _switches("attn_type_list", on=FULL, off=STATE),
    "attn_layer_indices": _indices("attn_layer_indices"),
    "full_attn_idxs": _indices("full_attn_idxs"),
    "linear_attn_config": _kimi,
    "block_configs": _nas,
    "cross_attention_layers": _crossing,
    "block_types": _repeated,
    "full_attention_interval": _interval,
    "attn_layer_period": _period,
}
