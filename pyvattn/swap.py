# SPDX-License-Identifier: Apache-2.0
"""A slot's tokens in host memory, between ``KVCache.offload`` and ``KVCache.restore``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pyvattn._native import Fence
from pyvattn.errors import TensorError
from pyvattn.geometry import Geometry
from pyvattn.state_rows import StateRows

__all__ = ["Offloaded"]


@dataclass(frozen=True, eq=False)
class Offloaded:
    """K and V of a slot's tokens in host memory, which goes with the last reference to this.

    ``length`` tokens. The rest is one for each group of layers that are alike: the first
    ``fronts`` of the tokens are not there, as nobody read them any more, ``token_bytes`` are what
    each takes in an arena, and ``data`` has them, ``[arenas, bytes]``. States of ``state_bytes``
    are the last of ``data``, ``[1, bytes]``.
    """

    length: int
    fronts: tuple[int, ...]
    token_bytes: tuple[int, ...]
    data: tuple[Any, ...]
    fence: Fence | None
    state_bytes: int = 0

    @property
    def bytes(self) -> int:
        """Bytes of host memory that it takes, in all arenas."""
        return sum(int(each.numel()) for each in self.data)

    @property
    def ready(self) -> bool:
        """Whether the copies to the host are done."""
        return self.fence is None or self.fence.passed()


def check_fits(
    offloaded: Offloaded, geometries: Sequence[Geometry], states: StateRows | None
) -> None:
    """Raise :class:`~pyvattn.errors.TensorError` for a cache whose tokens lie otherwise."""
    kept = states.bytes if states is not None else 0
    if offloaded.state_bytes != kept:
        raise TensorError(
            f"these tokens have states of {offloaded.state_bytes} bytes, and in this cache they "
            f"take {kept}: restore them in one with the same spec"
        )
    arenas = [each.shape[0] for each in offloaded.data[: len(offloaded.token_bytes)]]
    had = list(zip(arenas, offloaded.token_bytes, strict=True))
    has = [(geometry.arenas, geometry.token_bytes) for geometry in geometries]
    if had != has:
        there, here = (" and ".join(f"{n} of {size}" for n, size in each) for each in (had, has))
        raise TensorError(
            f"these tokens lie in arenas, {there} bytes a token, and this cache has {here}: "
            "restore them in one with the same spec and layout"
        )
    for front, geometry in zip(offloaded.fronts, geometries, strict=True):
        held = offloaded.length - front
        if geometry.ring_tokens and held > geometry.ring_tokens:
            raise TensorError(
                f"{held} tokens of layers with a window for rings of {geometry.ring_tokens}: "
                "restore them in a cache whose rings are as long as they were"
            )


def byte_ranges(
    geometries: Sequence[Geometry], fronts: Sequence[int], tokens: int
) -> list[tuple[int, int]]:
    """Return where a row's tokens up to ``tokens`` lie in the arenas of each group, in bytes."""
    ranges = []
    for geometry, front in zip(geometries, fronts, strict=True):
        first, size = geometry.place_of(front), geometry.token_bytes
        ranges.append((first * size, (first + tokens - front) * size))
    return ranges
