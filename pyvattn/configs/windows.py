# SPDX-License-Identifier: Apache-2.0
"""Finds out which layers attend within a window where a config does not list it.

Only families whose classes are known to do so have rules here. A layer of any other keeps
every token, which is more than it may need and never too little.
"""

from __future__ import annotations

from collections.abc import Callable

from pyvattn.configs.fields import Fields
from pyvattn.configs.layers import CHUNKED, FULL, HYBRID_SLIDING, SLIDING, Kinds

_ALL = frozenset({"mistral", "mixtral", "moshi", "phi3", "phimoe", "starcoder2"})
_FROM_A_LAYER_ON = frozenset({"qwen2", "qwen2_moe", "qwen3", "qwen3_moe"})
# Every so many-th layer is full, the others have the window.
_EVERY = {
    "cohere2": 4,
    "exaone4": 4,
    "gemma2": 2,
    "gemma3_text": 6,
    "gemma3n_text": 5,
    "gemma4_text": 6,
    "gemma4_unified_text": 6,
    "gpt_oss": 2,
    "olmo3": 4,
    "vaultgemma": 2,
}
# Their class makes the last layer full, whatever the list says.
_LAST_IS_FULL = frozenset({"gemma4_text", "gemma4_unified_text"})
_PATTERN = ("sliding_window_pattern", "_sliding_window_pattern")
_WINDOW = ("sliding_window", "sliding_window_size", "attention_window_size")


def layer_windows(fields: Fields, kinds: Kinds) -> list[int | None]:
    """Return how many tokens each layer of ``kinds`` needs; ``None`` for all of them.

    Of a chunk it is the most that a token of it sees: all of the chunk.
    """
    window = _window(fields)
    chunk = fields.count("attention_chunk_size") if CHUNKED in kinds else None
    needed = {SLIDING: window, HYBRID_SLIDING: window, CHUNKED: chunk}
    return [needed.get(kind) for kind in kinds]


def kinds_with_windows(fields: Fields, kinds: Kinds) -> Kinds:
    """Return ``kinds`` with the windows of families that do not list them."""
    if fields.find("layer_types"):
        # What it says of windows and chunks the list says as well.
        fields.find(*_PATTERN, "attention_chunk_size")
    if not _window(fields):
        fields.find(*_PATTERN)
    if set(kinds) == {FULL} and not fields.find("layer_types"):
        rule = _own(fields) or (_rule(fields) if _window(fields) else _none)
        kinds = [rule(layer) or kind for layer, kind in enumerate(kinds)]
    if fields.model_type in _LAST_IS_FULL:
        return [*kinds[:-1], FULL]
    return kinds


def _window(fields: Fields) -> int | None:
    window = fields.count(*_WINDOW) if fields.find(*_WINDOW) else None
    # Another meaning of the window: queries see tokens on both sides.
    if window is None or fields.find("use_bidirectional_attention") in (True, "all"):
        return None
    # MiMo counts the tokens before the newest.
    return window + 1 if fields.given.get("sliding_window_size") else window


Rule = Callable[[int], "str | None"]
"""Gives a layer's kind, or None for one that keeps all."""


def _none(layer: int) -> str | None:
    return None


def _own(fields: Fields) -> Rule | None:
    """Return the rule of families whose layers differ in more than a window."""
    if fields.model_type == "mimo_v2_flash":
        return lambda layer: SLIDING if layer and (layer + 1) % 6 else None
    return _chunks(fields) if fields.model_type == "llama4_text" else None


def _chunks(fields: Fields) -> Rule:
    """Return which layers of Llama 4 see a chunk: those with rotary positions."""
    listed = fields.find("no_rope_layers")
    if isinstance(listed, list) and listed:
        return lambda layer: CHUNKED if layer < len(listed) and listed[layer] else None
    every = fields.count("no_rope_layer_interval") or 4
    return lambda layer: CHUNKED if (layer + 1) % every else None


def _rule(fields: Fields) -> Rule:
    """Return which layers have a window, as the family's class in transformers has it."""
    kind = fields.model_type
    if kind in _ALL:
        return lambda layer: SLIDING
    if kind in _FROM_A_LAYER_ON and fields.find("use_sliding_window"):
        first = fields.optional("max_window_layers")
        return lambda layer: SLIDING if layer >= first else None
    if kind in _EVERY:
        return _every(fields, _EVERY[kind])
    return _none


def _every(fields: Fields, usual: int) -> Rule:
    pattern = fields.find(*_PATTERN)
    if isinstance(pattern, str):
        # EXAONE 4 writes L for a window and G for none, over and over.
        return lambda layer: SLIDING if pattern[layer % len(pattern)] == "L" else None
    every = fields.count(*_PATTERN) or usual
    return lambda layer: SLIDING if (layer + 1) % every else None
