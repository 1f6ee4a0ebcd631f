# SPDX-License-Identifier: Apache-2.0
"""Reads the KV cache's shape out of a Hugging Face ``config.json``.

A :class:`~pyvattn.spec.CacheSpec` has layers that are alike. Where a model's
are not, those that keep K and V are counted; where these differ among
themselves, or where something in the config is not understood, it is refused
by name rather than guessed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from os import PathLike
from typing import Any

from pyvattn.configs.fields import DTYPE, MAX_TOKENS, Fields
from pyvattn.configs.layers import KEEPS_STATE, WINDOWED, layer_kinds
from pyvattn.configs.shapes import Shape, layer_shapes
from pyvattn.configs.signs import check_extras, check_signs
from pyvattn.configs.source import decoder_config
from pyvattn.dtypes import ITEMSIZE, dtype_name
from pyvattn.errors import SpecError
from pyvattn.units import format_size

_SHAPE = frozenset({"layers", "kv_heads", "head_dim"})


def read_fields(
    config: Mapping[str, Any] | str | PathLike[str], given: Collection[str] = ()
) -> dict[str, Any]:
    """Return the fields of :class:`~pyvattn.spec.CacheSpec` that ``config`` determines.

    ``given`` are the fields that the caller has: where ``layers``, ``kv_heads``
    and ``head_dim`` are among them, the config's layers are not looked at.
    """
    text, whole = decoder_config(config)
    fields = Fields(text)
    result: dict[str, Any] = {}
    if (tokens := fields.count(*MAX_TOKENS)) is not None:
        result["max_tokens"] = tokens
    dtype = fields.find(*DTYPE) or Fields(whole).find(*DTYPE)
    if dtype not in (None, "auto"):
        result["dtype"] = dtype
    if not _SHAPE.issubset(given):
        result |= _shape(fields, result.get("dtype"))
    return result


def remarks(config: Mapping[str, Any] | str | PathLike[str]) -> list[str]:
    """Return what a spec of ``config`` does not say of the model, in sentences.

    The layers that keep a state beside the cache or in place of it, and those
    that would need no more than a window of what the cache keeps.
    """
    text, _ = decoder_config(config)
    kinds = layer_kinds(fields := Fields(text))
    found = []
    if states := sum(kind in KEEPS_STATE for kind in kinds):
        found.append(
            f"{states} of {len(kinds)} layers keep a state of fixed size for each request, which "
            "the cache does not hold."
        )
    window = fields.find("sliding_window", "sliding_window_size", "attention_chunk_size")
    if windowed := sum(kind in WINDOWED for kind in kinds):
        size = f"a window of {window} tokens" if window else "a window"
        found.append(
            f"{windowed} of {len(kinds)} layers attend within {size}; the cache keeps every token."
        )
    return found


def _shape(fields: Fields, dtype: Any) -> dict[str, Any]:
    check_extras(fields)
    kinds = layer_kinds(fields)
    shapes = layer_shapes(fields, kinds)
    check_signs(fields, kinds)
    kept = [(kind, shape) for kind, shape in zip(kinds, shapes, strict=True) if shape is not None]
    if not kept:
        raise SpecError(f"none of the model's {len(kinds)} layers keeps K and V")
    first = kept[0][1]
    if any(shape != first for _, shape in kept) or _unequal(first):
        raise _unlike(kept, dtype)
    return {"layers": len(kept), **_fields_of(first)}


def _fields_of(shape: Shape) -> dict[str, Any]:
    result: dict[str, Any] = {"kv_heads": shape.kv_heads, "head_dim": shape.head_dim}
    if shape.latent_dim:
        rope = shape.head_dim - shape.latent_dim
        result |= {"kind": "mla", "latent_dim": shape.latent_dim, "rope_dim": rope}
    return result


def _unequal(shape: Shape) -> bool:
    return not shape.latent_dim and shape.head_dim != shape.v_head_dim


def _unlike(kept: list[tuple[str, Shape]], dtype: Any) -> SpecError:
    """Say what each kind of layer keeps of a token, as no spec can."""
    itemsize = ITEMSIZE[dtype_name("bfloat16" if dtype is None else dtype)]
    parts = [
        f"{count} of {kind} with {shape} ({format_size(count * shape.elements * itemsize)} a token)"
        for (kind, shape), count in Counter(kept).items()
    ]
    return SpecError(
        f"the model has layers that a CacheSpec cannot describe: {', '.join(parts)}. It holds "
        "layers that are alike, with K as wide as V: give layers, kv_heads and head_dim by hand"
    )
