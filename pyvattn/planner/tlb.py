"""The TLB rule: a kernel that walks one layer must find enough of its tokens in each entry.

Measured with FlashAttention-3 on one H200, 32 layers, decode, against cudaMalloc in
layout ``layer``:

* in a 64K entry 32 tokens (layout ``layer``) or 16 (one layer, K and V side by side)
  run at 1.01, 16 of a rank of eight (8 layers side by side) at 1.03, 8 (2 layers) at
  1.05, 0.5 to 1 (all layers) at 6 to 12;
* in a 2M entry 64 or 32 tokens (8 or 16 layers side by side) run at 1.01, 16 (32
  layers) at 1.02 to 1.04.

From 16 tokens on it is the strides that cost: the same strides in cudaMalloc's memory
take as long.
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
    With several layers side by side: with 16 tokens of each in an entry, and with 32 in
    a 2M entry. How many arenas there are besides makes no difference to a kernel.
    """

    layer_large: float = 0.0
    layer_small: float = 0.01
    token: float = 0.03
    token_32: float = 0.01


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
    tokens = tokens_per_entry(geometry)
    if geometry.layout == "token" and geometry.layers_per_arena > 1:
        large = entry_size(geometry.page_size) == LARGE_ENTRY
        return losses.token_32 if large and tokens >= WARN_BELOW else losses.token
    return losses.layer_large if tokens >= _MANY_TOKENS else losses.layer_small
