# SPDX-License-Identifier: Apache-2.0
"""Finds out how wide the K and V of a layer are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pyvattn.configs.fields import HEAD_DIM, HIDDEN, KV_HEADS, QUERY_HEADS, Fields
from pyvattn.configs.layers import FULL, KEEPS_KV, SLIDING, WINDOWED
from pyvattn.errors import SpecError


@dataclass(frozen=True)
class Shape:
    """What one layer keeps of a token: K and V of so many heads, or one latent vector."""

    kv_heads: int
    head_dim: int
    v_head_dim: int
    latent_dim: int = 0

    @property
    def elements(self) -> int:
        """Elements of a token."""
        if self.latent_dim:
            return self.head_dim
        return self.kv_heads * (self.head_dim + self.v_head_dim)

    def __str__(self) -> str:
        if self.latent_dim:
            return f"latent vectors of {self.latent_dim} + {self.head_dim - self.latent_dim}"
        width = str(self.head_dim)
        if self.v_head_dim != self.head_dim:
            width += f" (K) and {self.v_head_dim} (V)"
        return f"{self.kv_heads} heads of {width}"


def layer_shapes(fields: Fields, kinds: list[str]) -> list[Shape | None]:
    """Return the shape of every layer's K and V; ``None`` for those that keep none."""
    if latent := fields.optional("kv_lora_rank"):
        width = latent + fields.optional("qk_rope_head_dim")
        usual = Shape(1, width, 0, latent)
        # They describe K and V as they are computed, not as they are kept.
        for name in (*KV_HEADS, *HEAD_DIM, "v_head_dim"):
            fields.find(name)
    else:
        head_dim = _head_dim(fields)
        usual = Shape(_kv_heads(fields), head_dim, fields.count("v_head_dim") or head_dim)
    by_kind = {kind: _of_kind(fields, usual, kind) for kind in KEEPS_KV}
    unlisted = WINDOWED.isdisjoint(kinds) and not fields.find("layer_types")
    if by_kind[SLIDING] != by_kind[FULL] and unlisted:
        raise SpecError(
            f"the model has layers with {by_kind[SLIDING]} and with {by_kind[FULL]}, and no "
            "layer_types say which: give layers, kv_heads and head_dim by hand"
        )
    shapes = [by_kind.get(kind) for kind in kinds]
    shapes = _per_layer(fields, shapes)
    return _nas_heads(fields, shapes)


def _of_kind(fields: Fields, usual: Shape, kind: str) -> Shape:
    """Return the shape of layers with a window, or of those without, where it is one of its own."""
    if kind in WINDOWED:
        # MiMo's class knows no other number.
        times = 2 if fields.model_type == "mimo_v2_flash" else 1
        heads = fields.count("swa_num_key_value_heads") or times * usual.kv_heads
        head_dim = fields.count("swa_head_dim") or usual.head_dim
        v_head_dim = fields.count("swa_v_head_dim") or fields.count("swa_head_dim")
        return replace(
            usual,
            kv_heads=heads,
            head_dim=head_dim,
            v_head_dim=v_head_dim or usual.v_head_dim,
        )
    if "per_layer_config" in fields.given:
        fields.find("global_head_dim", "num_global_key_value_heads")
        return usual
    # Gemma 4's full layers have more heads of their own only where K is V as well.
    heads = fields.optional("num_global_key_value_heads")
    heads = heads if fields.find("attention_k_eq_v") in (None, True) else 0
    head_dim = fields.optional("global_head_dim") or usual.head_dim
    wide = replace(usual, kv_heads=heads or usual.kv_heads, head_dim=head_dim)
    return wide if head_dim == usual.head_dim else replace(wide, v_head_dim=head_dim)


def _per_layer(fields: Fields, shapes: list[Shape | None]) -> list[Shape | None]:
    """Apply what newer releases of transformers write for single layers."""
    changes = fields.find("per_layer_config")
    if not isinstance(changes, Mapping):
        return shapes
    changed = list(shapes)
    for key, values in changes.items():
        place = int(key)
        shape = shapes[place] if place < len(shapes) else None
        if shape is not None:
            one = Fields({**values, "model_type": fields.model_type})
            heads = one.count(*KV_HEADS) if _any(values, KV_HEADS) else shape.kv_heads
            dim = one.count(*HEAD_DIM) if _any(values, HEAD_DIM) else shape.head_dim
            changed[place] = replace(
                shape,
                kv_heads=heads or shape.kv_heads,
                head_dim=dim or shape.head_dim,
                v_head_dim=dim or shape.v_head_dim,
            )
    return changed


def _any(values: Mapping[str, Any], names: tuple[str, ...]) -> bool:
    return any(name in values for name in names)


def _nas_heads(fields: Fields, shapes: list[Shape | None]) -> list[Shape | None]:
    """Apply Nemotron-NAS's query heads in a group, which each layer has of its own."""
    blocks = fields.find("block_configs")
    if not isinstance(blocks, list):
        return shapes
    query = fields.need(*QUERY_HEADS)
    changed: list[Shape | None] = []
    for shape, block in zip(shapes, blocks, strict=True):
        group = block["attention"].get("n_heads_in_group")
        if shape is not None and group:
            if not isinstance(group, int) or query % group:
                raise SpecError(
                    f"n_heads_in_group={group!r} of the model config does not divide {query} heads"
                )
            shape = replace(shape, kv_heads=query // group)
        changed.append(shape)
    return changed


def _kv_heads(fields: Fields) -> int:
    inner = fields.find("attn_config")
    if isinstance(inner, Mapping):
        return _inner_heads(fields, inner)
    one = _single_head(fields)
    if one is not None:
        return one
    heads = fields.count(*KV_HEADS)
    if heads is not None:
        return heads
    if not fields.known and not isinstance(fields.find("block_configs"), list):
        raise fields.missing("num_key_value_heads")
    return fields.need(*QUERY_HEADS)


def _single_head(fields: Fields) -> int | None:
    """Read the switches that came before a number of KV heads; ``None`` where there is none."""
    if fields.find("new_decoder_architecture"):
        fields.find("multi_query")
        return None
    # Falcon and GPT-BigCode, then ChatGLM.
    switch = fields.find("multi_query")
    if switch is not None:
        fields.find(*KV_HEADS)
        return 1 if switch else fields.need(*QUERY_HEADS)
    if fields.find("multi_query_attention") is False:
        fields.find("multi_query_group_num")
        return fields.need(*QUERY_HEADS)
    return None


def _inner_heads(fields: Fields, inner: Mapping[str, Any]) -> int:
    """Read DBRX's and MPT's ``attn_config``."""
    fields.find(*KV_HEADS)
    kind = inner.get("attn_type") or "grouped_query_attention"
    if kind == "multiquery_attention":
        return 1
    if kind == "multihead_attention":
        return fields.need(*QUERY_HEADS)
    if kind != "grouped_query_attention" or "kv_n_heads" not in inner:
        raise SpecError(
            f"attn_config of the model config, attn_type {kind!r}, does not say how many KV heads "
            "there are (kv_n_heads): give layers, kv_heads and head_dim by hand"
        )
    return Fields({**inner, "model_type": fields.model_type}).need("kv_n_heads")


def _head_dim(fields: Fields) -> int:
    head_dim = fields.count(*HEAD_DIM)
    if head_dim is not None:
        return head_dim
    if not fields.known:
        raise fields.missing("head_dim")
    hidden, heads = fields.need(*HIDDEN), fields.need(*QUERY_HEADS)
    # Zamba attends to the hidden state and the embedding side by side.
    hidden *= 2 if fields.model_type in ("zamba", "zamba2") else 1
    if hidden % heads:
        raise SpecError(f"hidden_size={hidden} is not divisible by {heads} attention heads")
    return hidden // heads
