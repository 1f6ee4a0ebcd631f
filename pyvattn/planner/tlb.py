# SPDX-License-Identifier: Apache-2.0
"""The TLB rule: a kernel that walks one layer must find enough of its tokens in each entry.

Measured with FlashAttention-3 on one H200, 32 layers of 8 KV heads of 128, decode,
against cudaMalloc in layout ``layer`` (docs/gpu.md):

* in a 64K entry 32 tokens (layout ``layer``) or 16 (one layer, K and V side by side)
  run at 1.01, 8 (two layers) at 1.05, 0.5 to 1 (all layers) at 6 to 12;
* in a 2M entry 64 or 32 tokens (8 or 16 layers side by side) run at 1.01, 16 (32
  layers) at 1.04.

With 16 tokens in an entry, of 32 layers in 2M or of one in 64K, the same strides in
cudaMalloc's memory take as long: it is the strides that cost.
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
# What lies together of a token, of one tensor of a layer, in the model that was measured.
_MEASURED_TOKEN = 2048


@dataclass(frozen=True)
class Losses:
    """Decode time lost against cudaMalloc in layout ``layer``, as shares.

    ``layer_large`` and ``layer_small`` are for one layer in an arena, with many of its
    tokens in an entry and with fewer. ``token_32`` is for several layers side by side that
    leave 32 tokens in a 2M entry, ``token`` for everything else of several layers: fewer
    tokens, and, not measured, 64K entries or tokens that are smaller than those measured.
    How many arenas there are besides makes no difference to a kernel.
    """

    layer_large: float = 0.0
    layer_small: float = 0.01
    token: float = 0.04
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
    if geometry.layers_per_arena > 1:
        large = entry_size(geometry.page_size) == LARGE_ENTRY
        measured = large and tokens >= WARN_BELOW and _together(geometry) >= _MEASURED_TOKEN
        return losses.token_32 if measured else losses.token
    return losses.layer_large if tokens >= _MANY_TOKENS else losses.layer_small


def _together(geometry: Geometry) -> int:
    """Return the bytes of a token that lie together for a kernel: those of one tensor."""
    view = geometry.views[0].k
    itemsize = geometry.token_bytes // view.strides[1]
    return view.shape[2] * view.shape[3] * itemsize
