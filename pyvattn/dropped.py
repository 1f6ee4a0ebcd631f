# SPDX-License-Identifier: Apache-2.0
"""Slots that were dropped without release: released where they are empty, else reported."""

from __future__ import annotations

import warnings

from pyvattn import _native
from pyvattn._native import Slot


class DroppedSlots:
    """Those of one cache."""

    def __init__(self, native: _native.Cache) -> None:
        self._native = native
        # With tokens, which kernels may still read: live until somebody releases them.
        self._kept: list[Slot] = []

    def recover(self) -> None:
        """Release what was dropped before its first step, and report the rest.

        For the methods that users call: the warning names the line that called one.
        """
        if self._native.any_dropped:
            report(self.lost())

    def lost(self) -> list[Slot]:
        """Return slots with tokens that were dropped since the last call; release others."""
        live = dict(self._native.live_slots())
        self._kept = [slot for slot in self._kept if slot in live]
        lost = []
        for slot, tokens in self._native.take_dropped():
            if tokens == 0:
                self._native.release(slot)
            else:
                lost.append(slot)
        self._kept += lost
        return lost


def report(lost: list[Slot]) -> None:
    """Warn of slots, where there are any."""
    if lost:
        warnings.warn(
            f"{', '.join(map(repr, lost))} dropped without release(): the pages stay taken; "
            "find such slots in live_slots() and release them",
            ResourceWarning,
            stacklevel=4,
        )
