# SPDX-License-Identifier: Apache-2.0
"""Finds out which layers attend within a window where a config does not list it.

Only families whose classes are known to do so have rules here. A layer of any other keeps
every token, which is more than it may need and never too little.
"""

from __future__ import annotations

from collections.abc import Callable

from pyvattn.configs.fields import Fields
from pyvattn.configs.layers import FULL, SLIDING, Kinds

_ALL = frozenset({"mistral", "mixtral", "moshi", "phi3", "phimoe", "starcoder2"})
_FROM_A_LAYER_ON = frozenset({"qwen2", "qwen2_moe", "qwen3", "qwen3_moe"})
# Every so many-th layer is full, the others have the window.
_EVERY = {"cohere2": 4, "gemma2": 2, "gemma3_text": 6, "gpt_oss": 2, "olmo3": 4, "vaultgemma": 2}
_PATTERN = ("sliding_window_pattern", "_sliding_window_pattern")
_WINDOW = ("sliding_window", "attention_window_size")


def layer_windows(fields: Fields, kinds: Kinds) -> list[int | None]:
    """Return how many tokens each layer of ``kinds`` needs; ``None`` for all of them."""
    window = fields.count(*_WINDOW) if fields.find(*_WINDOW) else None
    # Another meaning of the window: queries see tokens on both sides.
    if window is None or fields.find("use_bidirectional_attention") is True:
        return [None] * len(kinds)
    return [window if kind == SLIDING else None for kind in _with_windows(fields, kinds)]


def _with_windows(fields: Fields, kinds: Kinds) -> Kinds:
    """Return ``kinds`` with the windows of families that do not list them."""
    if set(kinds) != {FULL} or fields.find("layer_types"):
        return kinds
    rule = _rule(fields)
    return [SLIDING if rule(layer) else kind for layer, kind in enumerate(kinds)]


def _rule(fields: Fields) -> Callable[[int], bool]:
    """Return which layers have a window, as the family's class in transformers has it."""
    kind = fields.model_type
    if kind in _ALL:
        return lambda layer: True
    if kind in _FROM_A_LAYER_ON and fields.find("use_sliding_window"):
        first = fields.optional("max_window_layers")
        return lambda layer: layer >= first
    if kind in _EVERY:
        every = fields.count(*_PATTERN) or _EVERY[kind]
        return lambda layer: (layer + 1) % every != 0
    return lambda layer: False
