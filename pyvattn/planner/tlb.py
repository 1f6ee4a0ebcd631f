"""The TLB rule: a kernel that walks one layer must find enough of its tokens in each entry.

Measured with FlashAttention-3 on one H200, 32 layers, against cudaMalloc in
layout ``layer``: 32 tokens in a 64K entry run at 1.00 to 1.01, 16 tokens in a
2M entry at 1.02 to 1.03, and 0.5 to 1 tokens in a 64K entry at 6 to 12.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from pyvattn.geometry import Geometry

REFUSE_BELOW = 16
WARN_BELOW = 32

SMALL_ENTRY = 64 << 10
LARGE_ENTRY = 2 << 20

# From here on tokens in an entry count as many.
_MANY_TOKENS = 1024


@dataclass(frozen=True)
class Losses:
    """Decode time lost against cudaMalloc in layout ``layer``, as shares.

    In layout ``layer``: with the tokens of a 2M entry, and with those of a 64K entry.
    In layout ``token``: with 16 tokens of one layer in a 2M entry, layers side by side.
    How many arenas there are besides makes no difference to a kernel; 64K entries do, and
    for them the figure is an assumption.
    """

    layer_large: float = 0.0
    layer_small: float = 0.01
    token: float = 0.03


MEASURED_LOSSES = Losses()


class Verdict(str, Enum):
    """What the rule says of a page size and layout."""

    OK = "ok"
    WARN = "warn"
    REFUSE = "refuse"
    NO_RULE = "no rule"


def entry_size(page_size: int) -> int:
    """Return the bytes that one page-table entry covers: pages below 2M have 64K entries."""
    return LARGE_ENTRY if page_size >= LARGE_ENTRY else SMALL_ENTRY


def tokens_per_entry(geometry: Geometry) -> float:
    """Return how many tokens of one layer a kernel finds in each page-table entry."""
    return entry_size(geometry.page_size) / geometry.token_bytes


def judge(geometry: Geometry, page_table: bool) -> Verdict:
    """Apply the rule; without a GPU's ``page_table`` there is none."""
    if not page_table:
        return Verdict.NO_RULE
    tokens = tokens_per_entry(geometry)
    if tokens < REFUSE_BELOW:
        return Verdict.REFUSE
    return Verdict.WARN if tokens < WARN_BELOW else Verdict.OK


def kernel_loss(
    geometry: Geometry, verdict: Verdict, losses: Losses = MEASURED_LOSSES
) -> float | None:
    """Return the share of decode time that the layout costs kernels; None where it is refused."""
    if verdict is Verdict.NO_RULE:
        return 0.0
    if verdict is Verdict.REFUSE:
        return None
    if geometry.layout == "token":
        return losses.token
    many = tokens_per_entry(geometry) >= _MANY_TOKENS
    return losses.layer_large if many else losses.layer_small
