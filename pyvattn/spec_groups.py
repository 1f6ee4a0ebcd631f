# SPDX-License-Identifier: Apache-2.0
"""What the groups of a :class:`~pyvattn.spec.CacheSpec` are together, and by themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pyvattn.errors import SpecError
from pyvattn.layer_group import LayerGroup
from pyvattn.state_group import StateGroup

if TYPE_CHECKING:
    from pyvattn.spec import CacheSpec


def apart(groups: object, states: object) -> tuple[object, object]:
    """Return the states, with those that were given among the groups, and the other groups."""
    if not isinstance(groups, Sequence) or isinstance(groups, (str, bytes)):
        return states, groups
    moved = [group for group in groups if isinstance(group, StateGroup)]
    if not moved:
        return states, groups
    if states:
        raise SpecError("StateGroups stand in groups and in states: give them in one of the two")
    return moved, [group for group in groups if not isinstance(group, StateGroup)]


def common_fields(groups: Sequence[LayerGroup], shared: Mapping[int, int]) -> dict[str, Any]:
    """Return the fields of a spec that its groups decide: 0 where they differ."""
    layers = sum(len(group.layers) for group in groups) + len(shared)
    shapes = {group.shape for group in groups}
    heads, dim, v_dim, latent = shapes.pop() if len(shapes) == 1 else (0, 0, 0, 0)
    return {
        "layers": layers,
        "kv_heads": heads,
        "head_dim": dim,
        "v_head_dim": v_dim,
        "kind": "mla" if latent else "kv",
        "latent_dim": latent,
        "rope_dim": dim - latent if latent else 0,
    }


def with_groups(spec: CacheSpec, groups: Sequence[LayerGroup]) -> CacheSpec:
    """Return ``spec`` with other groups of the same layers."""
    return replace(spec, groups=tuple(groups), **common_fields(groups, spec.shared))


def parts_of(spec: CacheSpec) -> tuple[CacheSpec, ...]:
    """Return a spec of layers that are alike for each group of ``spec``."""
    if not spec.groups:
        return (replace(spec, states=()),)
    return tuple(_part(spec, group) for group in spec.groups)


def _part(spec: CacheSpec, group: LayerGroup) -> CacheSpec:
    guard = spec.guard_tokens if group.guard_tokens is None else group.guard_tokens
    own = common_fields([group], {})
    return replace(spec, groups=(), shared={}, states=(), guard_tokens=guard, **own)


def places_of(spec: CacheSpec) -> tuple[tuple[int, int], ...]:
    """Return for every layer its group, and which of the group's layers it is or reads."""
    found = {
        layer: (number, place)
        for number, group in enumerate(spec.groups)
        for place, layer in enumerate(group.layers)
    }
    found |= {reader: found[source] for reader, source in spec.shared.items()}
    return tuple(found[layer] for layer in range(spec.layers))


def without_idle_windows(spec: CacheSpec) -> CacheSpec:
    """Return ``spec`` without windows that no request of ``max_tokens`` outgrows.

    Groups that are alike then become one, and a single one that keeps every token none; those
    with the shortest windows come first.
    """
    if not spec.groups:
        return spec
    merged: dict[tuple[object, ...], LayerGroup] = {}
    for group in spec.groups:
        idle = group.window is None or group.window >= spec.max_tokens
        one = replace(group, window=None, ring=False) if idle else group
        same = (one.shape, one.window, one.guard_tokens, one.ring)
        before = merged[same].layers if same in merged else ()
        merged[same] = replace(one, layers=sorted((*before, *one.layers)))
    groups = sorted(merged.values(), key=lambda g: (g.window is None, g.window or 0, g.layers[0]))
    whole = with_groups(spec, groups)
    alike = len(groups) == 1 and groups[0].window is None and not spec.shared
    return whole.flat() if alike else whole
