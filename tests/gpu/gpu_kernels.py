# SPDX-License-Identifier: Apache-2.0
"""Kernels in Triton, which reads their source from a file."""

import triton
import triton.language as tl


@triton.jit
def add_one(k, length, token_stride, BLOCK: tl.constexpr):
    """Add 1 to the first element of each token."""
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = token < length
    tl.store(
        k + token * token_stride, tl.load(k + token * token_stride, mask=there) + 1, mask=there
    )
