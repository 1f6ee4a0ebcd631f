# SPDX-License-Identifier: Apache-2.0
"""Whole numbers as users write them: ints, and everything else that has ``__index__``."""

from __future__ import annotations

import operator


def whole_number(value: object) -> int | None:
    """Return the int that ``value`` stands for, or ``None`` where it stands for none.

    The integers of numpy and torch count; ``bool`` and whole floats do not.
    """
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None
