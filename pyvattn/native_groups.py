# SPDX-License-Identifier: Apache-2.0
"""What the core is told of a spec's groups."""

from __future__ import annotations

from collections.abc import Sequence

from pyvattn import _native
from pyvattn.geometry import Geometry
from pyvattn.spec import CacheSpec
from pyvattn.state_rows import StateRows


def native_groups(
    spec: CacheSpec, geometries: Sequence[Geometry], states: StateRows | None
) -> list[_native.LayerGroup]:
    """Return the core's groups: those of layers that keep tokens, and the states of all others."""
    groups = [
        _native.LayerGroup(
            arenas=geometry.arenas,
            token_bytes=geometry.token_bytes,
            guard_tokens=geometry.guard_tokens,
            window=window or 0,
            ring_tokens=geometry.ring_tokens,
        )
        for geometry, window in zip(geometries, spec.windows, strict=True)
    ]
    if states is not None:
        groups.append(
            _native.LayerGroup(
                arenas=states.arenas, token_bytes=states.bytes, guard_tokens=0, state=True
            )
        )
    return groups
