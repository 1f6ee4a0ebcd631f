# SPDX-License-Identifier: Apache-2.0
"""How much memory caches and block pools may hold: a number, or a budget that they share."""

from __future__ import annotations

from pyvattn import _native
from pyvattn._native import Budget
from pyvattn.units import parse_size

__all__ = ["Budget", "MemoryLimit", "budget_of"]


class MemoryLimit(_native.MemoryLimit):
    """At most so many bytes, for all caches and block pools that are opened with it together.

    Pass it as their ``memory``. ``limit``, ``held`` and ``headroom`` are in bytes.
    ``set_limit`` moves the limit, below what is held as well: nothing more is then
    allocated, and each holder's ``give_back()`` returns what it can spare. What one holder
    keeps for its next requests is not taken from it for another.
    """

    def __init__(self, memory: int | str) -> None:
        super().__init__(parse_size(memory, "memory"))


def budget_of(memory: int | str | Budget) -> Budget:
    """Return ``memory`` if it is a budget, or one of so many bytes for one holder."""
    return memory if isinstance(memory, Budget) else MemoryLimit(memory)
