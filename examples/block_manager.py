# SPDX-License-Identifier: Apache-2.0
"""An engine with a block manager of its own drives attention through pyvattn's rows.

Two requests share the blocks of one prompt; each then decodes into blocks of its own.
Kernels see plain tensors: one row for each request, contiguous from its first token.

    python examples/block_manager.py
"""

import torch

from pyvattn import BlockPool, CacheSpec, RowMap
from pyvattn.attention import attend

spec = CacheSpec(layers=1, kv_heads=2, head_dim=64, dtype="float32", max_slots=4, max_tokens=4096)
with BlockPool(spec, device="cpu", layout="layer", memory="64MiB") as pool:
    rows = RowMap(pool)
    k, v = rows.layer(0)  # [max_slots, max_tokens, kv_heads, head_dim]
    tokens = pool.geometry.page_size // pool.geometry.token_bytes  # in a block

    # The prompt: two whole blocks, computed once, in the first request's row.
    prompt = pool.allocate(2)
    first = rows.open(prompt)
    rows.flush()
    k[first, : 2 * tokens].normal_()
    v[first, : 2 * tokens].normal_()

    # The second request aliases them: no copy, and no memory but for what it decodes.
    second = rows.open(prompt)
    for row in (first, second):
        rows.extend(row, pool.allocate(1, after=prompt[-1]))
    rows.flush()

    batch = torch.tensor([first, second])
    for length in range(2 * tokens + 1, 2 * tokens + 9):
        k[batch, length - 1] = torch.randn(2, 2, 64)
        v[batch, length - 1] = torch.randn(2, 2, 64)
        query = torch.randn(2, 1, 8, 64)
        out = attend(query, rows, 0, batch, torch.full((2,), length))
    print(f"{tuple(out.shape)}; {pool.stats().blocks_allocated - pool.stats().blocks_free} blocks")
