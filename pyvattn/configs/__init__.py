# SPDX-License-Identifier: Apache-2.0
"""Reads the KV cache's shape out of a Hugging Face ``config.json``.

The layers that keep K and V are counted. Where they differ, in shape or by a
window, those that are alike become a group; what no group can describe, and
what is not understood in the config, is refused by name rather than guessed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from os import PathLike
from typing import Any

from pyvattn.configs.fields import DTYPE, MAX_TOKENS, Fields
from pyvattn.configs.layers import KEEPS_STATE, WINDOWED, Kinds, layer_kinds
from pyvattn.configs.shapes import Shape, layer_shapes
from pyvattn.configs.sharing import layer_sources, without_shared
from pyvattn.configs.signs import check_extras, check_signs
from pyvattn.configs.source import decoder_config
from pyvattn.configs.states import layer_states
from pyvattn.configs.support import support
from pyvattn.configs.windows import kinds_with_windows, layer_windows
from pyvattn.dtypes import ITEMSIZE, dtype_name
from pyvattn.errors import SpecError
from pyvattn.layer_group import LayerGroup
from pyvattn.units import format_size

_SHAPE = frozenset({"layers", "kv_heads", "head_dim"})


def read_fields(
    config: Mapping[str, Any] | str | PathLike[str], given: Collection[str] = ()
) -> dict[str, Any]:
    """Return the fields of :class:`~pyvattn.spec.CacheSpec` that ``config`` determines.

    ``given`` are the fields that the caller has: where ``layers``, ``kv_heads``
    and ``head_dim`` are among them, the config's layers are not looked at, and with any of
    them or ``kind`` the layers must be alike, and keep every token.
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
        by_hand = bool({*_SHAPE, "kind", "groups"} & set(given))
        result |= _shape(fields, result.get("dtype"), by_hand)
    return result


def remarks(config: Mapping[str, Any] | str | PathLike[str]) -> list[str]:
    """Return what a spec of ``config`` does not say of the model, in sentences.

    The layers that keep a state beside the cache or in place of it, and those
    that would need no more than a window of what the cache keeps.
    """
    text, _ = decoder_config(config)
    kinds, _ = _kinds(fields := Fields(text))
    found = []
    if states := sum(kind in KEEPS_STATE for kind in kinds):
        size = sum(group.bytes for group in layer_states(fields, kinds, "bfloat16"))
        known = "" if size else ", nor are they counted, as their sizes are not known"
        found.append(
            f"{states} of {len(kinds)} layers keep a state of fixed size for each request, which "
            f"the cache does not hold{known}."
        )
    windows = layer_windows(fields, kinds)
    for window in sorted({window for window in windows if window is not None}):
        found.append(
            f"{windows.count(window)} of {len(kinds)} layers attend within a window of {window} "
            "tokens, and keep no more."
        )
    kept = [w is None and kind in WINDOWED for kind, w in zip(kinds, windows, strict=True)]
    if sum(kept):
        found.append(
            f"{sum(kept)} of {len(kinds)} layers attend within a window; the cache keeps every "
            "token."
        )
    return found


def supported(config: Mapping[str, Any] | str | PathLike[str]) -> str:
    """Return what the transformers integration does with a model of ``config``, in a sentence."""
    text, _ = decoder_config(config)
    kinds, _ = _kinds(fields := Fields(text))
    return support(kinds, layer_shapes(fields, kinds))


def _shape(fields: Fields, dtype: Any, by_hand: bool) -> dict[str, Any]:
    check_extras(fields)
    kinds, sources = _kinds(fields)
    shapes = layer_shapes(fields, kinds)
    windows = [None] * len(kinds) if by_hand else layer_windows(fields, kinds)
    states = layer_states(fields, kinds, dtype_name("bfloat16" if dtype is None else dtype))
    check_signs(fields, kinds)
    described = zip(shapes, windows, strict=True)
    kept = {i: (shape, window) for i, (shape, window) in enumerate(described) if shape is not None}
    if not kept:
        raise SpecError(f"none of the model's {len(kinds)} layers keeps K and V")
    first, _ = kept[min(kept)]
    alike = all(one == (first, None) for one in kept.values())
    if alike and (by_hand or not sources):
        return {"layers": len(kept), "states": states, **_fields_of(first)}
    if by_hand:
        raise _unlike([(kinds[layer], shape) for layer, (shape, _) in kept.items()], dtype)
    # The layers of a spec are those that attend, in the model's order.
    numbers = {layer: number for number, layer in enumerate(sorted([*kept, *sources]))}
    return {
        "groups": _groups({numbers[layer]: one for layer, one in kept.items()}),
        "states": states,
        "shared": {numbers[reader]: numbers[read] for reader, read in sources.items()},
    }


def _kinds(fields: Fields) -> tuple[Kinds, dict[int, int]]:
    """Return the kind of every layer, and which one those read that keep nothing."""
    kinds = kinds_with_windows(fields, layer_kinds(fields))
    sources = layer_sources(fields, kinds)
    return without_shared(kinds, sources), sources


def _groups(kept: Mapping[int, tuple[Shape, int | None]]) -> list[LayerGroup]:
    """Return a group for each kind of layer."""
    return [
        LayerGroup(
            layers=[layer for layer, one in kept.items() if one == (shape, window)],
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            window=window,
            v_head_dim=shape.v_head_dim,
            latent_dim=shape.latent_dim,
        )
        for shape, window in dict.fromkeys(kept.values())
    ]


def _fields_of(shape: Shape) -> dict[str, Any]:
    result: dict[str, Any] = {"kv_heads": shape.kv_heads, "head_dim": shape.head_dim}
    if shape.latent_dim:
        rope = shape.head_dim - shape.latent_dim
        return result | {"kind": "mla", "latent_dim": shape.latent_dim, "rope_dim": rope}
    return (
        result if shape.v_head_dim == shape.head_dim else {**result, "v_head_dim": shape.v_head_dim}
    )


def _unlike(kept: list[tuple[str, Shape]], dtype: Any) -> SpecError:
    """Say what each kind of layer keeps of a token, as no spec can."""
    itemsize = ITEMSIZE[dtype_name("bfloat16" if dtype is None else dtype)]
    parts = [
        f"{count} of {kind} with {shape} ({format_size(count * shape.elements * itemsize)} a token)"
        for (kind, shape), count in Counter(kept).items()
    ]
    return SpecError(
        f"the model has layers that one shape given in part cannot describe: {', '.join(parts)}: "
        "give none of layers, kv_heads and head_dim, or all by hand"
    )
