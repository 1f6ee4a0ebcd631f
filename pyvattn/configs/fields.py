# SPDX-License-Identifier: Apache-2.0
"""Reads single fields of a config, and remembers which were read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyvattn.configs.families import (
    BERTS,
    DEFAULTS,
    KEYS_WITHOUT_A_FIELD,
    OTHERS,
    PARTS,
    WITH_AN_ENCODER,
)
from pyvattn.errors import SpecError

# The names that model families give to the same thing, the common one first.
LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
QUERY_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads")
KV_HEADS = (
    "num_key_value_heads",
    "num_kv_heads",
    "n_head_kv",
    "multi_query_group_num",
    "num_attention_groups",
)
HIDDEN = ("hidden_size", "n_embd", "d_model", "emb_dim")
# Zamba2 has two of them, and attends with the first.
HEAD_DIM = ("head_dim", "attention_head_dim", "kv_channels", "dim_head")
MAX_TOKENS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
DTYPE = ("dtype", "torch_dtype")

# Families whose heads are as in Llama where their configs say nothing else.
_ALIKE = OTHERS | BERTS | WITH_AN_ENCODER | PARTS


class Fields:
    """The fields of one decoder's config.

    A field that the config leaves out has the default of its family's class
    (:mod:`pyvattn.configs.families`). What was asked for is in ``read``, so
    that :mod:`pyvattn.configs.signs` finds what was never asked for.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.given = config
        self.model_type = str(config.get("model_type", "unknown"))
        self.known = self.model_type in DEFAULTS or self.model_type in _ALIKE
        self.read: set[str] = set()
        self._defaults: Mapping[str, Any] = {
            **DEFAULTS.get(self.model_type, {}),
            **KEYS_WITHOUT_A_FIELD.get(self.model_type, {}),
        }

    def find(self, *names: str) -> Any:
        """Return the first of ``names`` that has a value, or ``None``.

        A field that is there and null is not given its default: that is how a
        config says that the value follows from others.
        """
        self.read.update(names)
        given = any(name in self.given for name in names)
        source = self.given if given else self._defaults
        return next((source[name] for name in names if source.get(name) is not None), None)

    def count(self, *names: str) -> int | None:
        """Return what :meth:`find` finds, a whole number from 1, or ``None``."""
        value = self.find(*names)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            name = next((name for name in names if self.given.get(name) is not None), names[0])
            raise SpecError(f"{name}={value!r} of the model config is not a whole number from 1")
        return value

    def optional(self, *names: str) -> int:
        """Return what :meth:`count` returns, and 0 for null or zero."""
        return 0 if self.find(*names) == 0 else self.count(*names) or 0

    def need(self, *names: str) -> int:
        """Return what :meth:`count` returns, or raise where there is nothing."""
        value = self.count(*names)
        if value is None:
            raise self.missing(names[0])
        return value

    def missing(self, name: str) -> SpecError:
        """Return the error for a field that is needed, not given and not known."""
        return SpecError(
            f"the model config (model_type {self.model_type!r}) has no {name}, and its family's "
            "default is not known: give layers, kv_heads and head_dim by hand"
        )
