# SPDX-License-Identifier: Apache-2.0
"""A slot's tokens in host memory, between ``KVCache.offload`` and ``KVCache.restore``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pyvattn._native import Fence
from pyvattn.errors import TensorError
from pyvattn.geometry import Geometry

__all__ = ["Offloaded"]


@dataclass(frozen=True, eq=False)
class Offloaded:
    """K and V of a slot's tokens in host memory, which goes with the last reference to this.

    ``length`` tokens, of which the first ``front`` are not there: nobody read them any more.
    """

    length: int
    front: int
    token_bytes: int
    data: Any
    fence: Fence | None

    @property
    def bytes(self) -> int:
        """Bytes of host memory that it takes, in all arenas."""
        return int(self.data.numel())

    @property
    def ready(self) -> bool:
        """Whether the copies to the host are done."""
        return self.fence is None or self.fence.passed()


def check_fits(offloaded: Offloaded, geometries: Sequence[Geometry]) -> None:
    """Raise :class:`~pyvattn.errors.TensorError` for a cache whose tokens lie otherwise."""
    arenas = offloaded.data.shape[0]
    if [(arenas, offloaded.token_bytes)] != [(g.arenas, g.token_bytes) for g in geometries]:
        here = " and ".join(f"{g.arenas} of {g.token_bytes}" for g in geometries)
        raise TensorError(
            f"these tokens lie in {arenas} arenas of {offloaded.token_bytes} bytes a token, this "
            f"cache has {here}: restore them in one with the same spec and layout"
        )
