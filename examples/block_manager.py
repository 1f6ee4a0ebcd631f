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
    tokens = 2 * pool.geometry.page_size // pool.geometry.token_bytes  # in two blocks

    # The second request aliases the prompt's blocks, and has memory only for what it decodes.
    prompt = pool.allocate(2)
    batch = [rows.open([*prompt, *pool.allocate(1)]) for _ in range(2)]
    rows.flush()
    k[batch[0], :tokens].normal_()
    v[batch[0], :tokens].normal_()

    for length in range(tokens + 1, tokens + 9):
        k[batch, length - 1] = torch.randn(2, 2, 64)
        v[batch, length - 1] = torch.randn(2, 2, 64)
        query = torch.randn(2, 1, 8, 64)
        out = attend(query, rows, 0, torch.tensor(batch), torch.full((2,), length))
    used = pool.stats().blocks_allocated - pool.stats().blocks_free
    print(f"{tuple(out.shape)}; {used} blocks")
