# SPDX-License-Identifier: Apache-2.0
"""FlexAttention over rows of more elements than its kernel counts to, in int32."""

# ruff: noqa: E402
from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from pyvattn.attention import FlexKernel, Problem

# As 32 layers of 8 KV heads lie side by side in vLLM: 40,000 tokens are 2.6 G elements.
TOKENS, TOKEN, HEADS, DIM = 40_000, 65_536, 8, 128
STRIDED = FlexKernel("strided", mask_mod=lambda b, h, q, k: (q - k < 1024) | (k % 4 == 0))


@pytest.mark.parametrize("queries", [1, 300])
def test_a_long_row_gives_what_its_dense_copy_gives(queries):
    torch.manual_seed(0)
    memory = torch.zeros(TOKENS * TOKEN, dtype=torch.bfloat16, device="cuda")
    shape, strides = (1, TOKENS, HEADS, DIM), (TOKENS * TOKEN, TOKEN, DIM, 1)
    k, v = (memory.as_strided(shape, strides, first) for first in (0, HEADS * DIM))
    for cache in (k, v):
        cache.copy_(torch.randn(shape, dtype=torch.bfloat16, device="cuda"))
    q = torch.randn(1, queries, 4 * HEADS, DIM, dtype=torch.bfloat16, device="cuda")

    def attend(keys, values):
        problem = Problem(q, keys, values, [0], [TOKENS - 3], True, DIM**-0.5)
        return STRIDED.attend_with_lse(problem), STRIDED.attend(problem)

    (out, lse), alone = attend(k, v)
    (wanted, sums), _ = attend(k.contiguous(), v.contiguous())
    torch.testing.assert_close(out, wanted, atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(alone, wanted, atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(lse, sums, atol=1e-3, rtol=1e-3)
