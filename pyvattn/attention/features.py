# SPDX-License-Identifier: Apache-2.0
"""What attention can be asked for beyond whole rows and equal numbers of queries."""

from __future__ import annotations

from enum import Enum


class Feature(Enum):
    """A feature of a kernel; the value is what people call it."""

    WINDOW = "a window"
    STARTS = "starts"
    SOFTCAP = "a softcap"
    ALIBI = "ALiBi slopes"
    PACKED = "packed queries"
    LSE = "the log-sum-exp"
    QUANTISED = "float8 K and V"
    V_WIDTH = "V of another width than K"


def named(features: frozenset[Feature]) -> str:
    """Return the features in words, in the order in which they are listed above."""
    return ", ".join(feature.value for feature in Feature if feature in features)
