# SPDX-License-Identifier: Apache-2.0
"""vLLM's ragged batches on a GPU, by torch's varlen kernel, against float64."""

# ruff: noqa: E402
from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from pyvattn.attention.indices import KnownIndices
from pyvattn.integrations.vllm.row_attention import Batch, attend, write


def test_a_ragged_batch_by_a_kernel_that_has_no_block_table():
    torch.manual_seed(0)
    cache = torch.randn(4, 512, 2, 2, 128, device="cuda", dtype=torch.bfloat16)
    counts = KnownIndices.of([1, 1, 64, 300], torch.tensor([1, 1, 64, 300], device="cuda"))
    rows = torch.tensor([3, 1, 0, 2], device="cuda")
    lengths = torch.tensor([500, 17, 200, 300], device="cuda", dtype=torch.int32)
    query, key, value = (
        torch.randn(366, heads, 128, device="cuda", dtype=torch.bfloat16) for heads in (8, 2, 2)
    )
    own = [
        range(length - count, length)
        for count, length in ((1, 500), (1, 17), (64, 200), (300, 300))
    ]
    slots = [
        row * 512 + token for row, tokens in zip((3, 1, 0, 2), own, strict=True) for token in tokens
    ]
    write(cache, key, value, torch.tensor(slots, device="cuda"))
    results = []
    for kernel in ("torch-varlen", "reference"):
        out = torch.empty_like(query)
        attend(out, query, cache, Batch(counts, rows, lengths), 128**-0.5, kernel)
        results.append(out)
    torch.testing.assert_close(*results, rtol=2e-2, atol=2e-2)
