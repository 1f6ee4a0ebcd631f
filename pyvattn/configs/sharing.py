# SPDX-License-Identifier: Apache-2.0
"""Finds out which layers read the K and V of another one."""

from __future__ import annotations

from pyvattn.configs.fields import Fields
from pyvattn.configs.layers import KEEPS_KV, Kinds
from pyvattn.errors import SpecError

SHARED = "shared"


def layer_sources(fields: Fields, kinds: Kinds) -> dict[int, int]:
    """Return the layer that each reads of those that keep no K and V of their own.

    Raises :class:`~pyvattn.errors.SpecError` where there is none that it could read.
    """
    return {**_last_of_their_kind(fields, kinds), **_first_of_their_run(fields, kinds)}


def without_shared(kinds: Kinds, sources: dict[int, int]) -> Kinds:
    """Return ``kinds`` with those layers marked that keep nothing."""
    return [SHARED if layer in sources else kind for layer, kind in enumerate(kinds)]


def _last_of_their_kind(fields: Fields, kinds: Kinds) -> dict[int, int]:
    """Read Gemma 3n and 4: the last layers read the last one of their kind before them."""
    shared = fields.optional("num_kv_shared_layers")
    if shared >= len(kinds):
        raise SpecError(f"num_kv_shared_layers={shared} of {len(kinds)} layers leaves none")
    first = len(kinds) - shared
    last = {kind: layer for layer, kind in enumerate(kinds[:first])}
    if missing := [kind for kind in kinds[first:] if kind not in last]:
        raise SpecError(
            f"num_kv_shared_layers={shared} of the model config leaves no layer of {missing[0]} "
            "whose K and V those that share could read"
        )
    return {layer: last[kinds[layer]] for layer in range(first, len(kinds))}


def _first_of_their_run(fields: Fields, kinds: Kinds) -> dict[int, int]:
    """Read Hunyuan: of so many layers in a row all read the first one's."""
    # Its configs have the factor where it is not used as well.
    factor = fields.optional("cla_share_factor")
    if not fields.find("use_cla"):
        return {}
    if not factor:
        raise SpecError(
            "use_cla=True of the model config has no cla_share_factor beside it, which would say "
            "how many layers share K and V: give layers, kv_heads and head_dim by hand"
        )
    return {
        layer: layer - layer % factor
        for layer, kind in enumerate(kinds)
        if layer % factor and kind in KEEPS_KV
    }
