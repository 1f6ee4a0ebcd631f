# SPDX-License-Identifier: Apache-2.0
"""What the layers of one forward pass share."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any


class Step:
    """Hand one to :func:`pyvattn.attention.attend` for all layers of a forward pass.

    Kernels that plan their work by the rows' lengths then plan once, and not in each layer. Slots,
    lengths, starts and counts must be the same objects with the same values throughout; a pass
    that is captured in a CUDA graph makes its Step within the capture.
    """

    def __init__(self) -> None:
        # What a plan was made of is kept, so that no other object gets its place in memory.
        self._made: dict[Hashable, tuple[object, Any]] = {}


def once(
    step: Step, sources: tuple[object, ...], settings: Hashable, make: Callable[[], Any]
) -> Any:
    """Return what ``make`` made in ``step`` for these very ``sources`` and equal ``settings``."""
    key = (tuple(map(id, sources)), settings)
    if key not in step._made:
        step._made[key] = sources, make()
    return step._made[key][1]
