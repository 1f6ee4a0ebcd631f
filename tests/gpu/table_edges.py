# SPDX-License-Identifier: Apache-2.0
"""FlashAttention-3 by a table of the rows, where nothing is mapped behind a row's last page.

A fault ends the CUDA context, so it is a program of its own:

    python tests/gpu/table_edges.py LAYOUT DTYPE KV_HEADS HEAD_DIM

Every length stands at an edge of a page or of a tile. It prints one line of JSON: the largest
distance from the reference, and the sizes of the blocks.
"""

from __future__ import annotations

import json
import os
import sys

import torch

from pyvattn import CacheSpec, KVCache
from pyvattn.attention import KVScales, attend, set_scales
from pyvattn.attention.flash_attn3_paged import whole_tokens_of
from pyvattn.attention.problem import Problem, page_bytes_of
from pyvattn.attention.row_table import RowTable

QUERIES = (1, 5, 64, 0)  # 0: the whole row


def measure(layout: str, dtype: str, kv_heads: int, head_dim: int) -> dict[str, object]:
    """Attend at every edge, each time in a slot that has no more than its own pages."""
    spec = CacheSpec(2, kv_heads, head_dim, dtype, max_slots=3, max_tokens=4096, guard_tokens=0)
    worst, blocks = 0.0, set()
    with KVCache(
        spec, device="cuda", driver="cumem", page_size="2M", layout=layout, memory="1GiB",
        background=False,
    ) as cache:  # fmt: skip
        if dtype.startswith("float8"):
            scale = [torch.ones(kv_heads, device="cuda") for _ in range(2)]
            set_scales(cache, KVScales(scale, scale))
        page = int(cache.geometry.tokens_per_page)
        edges = {1, page - 1, page, page + 1, 2 * page, 257, 128, 127, 129}
        for length in sorted(edge for edge in edges if 0 < edge <= spec.max_tokens):
            slot = cache.admit(length)
            tensors = cache.layer(1)
            for tensor in tensors:
                values = torch.randn(length, *tensor.shape[2:], device="cuda")
                tensor[slot.index, :length] = values.to(tensor.dtype)
            for queries in QUERIES:
                shape = (1, queries or length, 4 * kv_heads, head_dim)
                q = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
                place = (cache, 1, [slot.index], [length])
                out = attend(q, *place, kernel="flash-attn-3-paged")
                torch.cuda.synchronize()
                wanted = attend(q, *place, kernel="reference")
                apart = (out - wanted).abs().max().nan_to_num(float("inf"))
                worst = max(worst, float(apart))
                problem = Problem(
                    q, *tensors, [0], [1], True, 1.0, page_bytes=page_bytes_of(cache)
                )  # fmt: skip
                blocks.add(RowTable.of(problem.k, whole_tokens_of(problem)).tokens)
            cache.trim(slot, 0)
            cache.release(slot)
    return {"worst": worst, "blocks": sorted(blocks)}


if __name__ == "__main__":
    layout, dtype, kv_heads, head_dim = sys.argv[1:]
    print(json.dumps(measure(layout, dtype, int(kv_heads), int(head_dim))), flush=True)
    # A context that faulted cannot be closed in order.
    os._exit(0)
