# SPDX-License-Identifier: Apache-2.0
"""The kernels that quantise queries on a GPU, by Triton's interpreter on the host.

That has to be asked for before Triton is imported, so each test is a process of its own. It does
not carry when it rounds to float8 and has no NaN of it, so the values are exact there; that a GPU
does as torch does is shown in tests/gpu.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the kernels take tensors of torch")
pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")

ROOT = Path(__file__).resolve().parents[2]

COMMON = """
import torch
from pyvattn.attention.problem import Problem
from pyvattn.attention.quantise import quantised_queries, row_of_query
from pyvattn.attention.quantise_triton import quantise_queries

torch.manual_seed(1)
KV_HEADS, GROUP, DIM = 2, 3, 24


def values(*shape):
    # 448 is the largest float8_e4m3fn: with it in every row and head, scales are powers of two.
    exact = torch.tensor([0.0, 1.0, -1.25, 3.5, -28.0, 224.0])
    return exact[torch.randint(len(exact), shape)].bfloat16()


def problem(q, rows, counts=None):
    kv = torch.zeros(rows, 16, KV_HEADS, DIM).to(torch.float8_e4m3fn)
    return Problem(q, kv, kv, list(range(rows)), [16] * rows, True, 1.0, query_counts=counts)


def check(asked, row):
    wanted, wanted_scale = quantised_queries(asked)
    flat = asked.q.reshape(-1, *asked.q.shape[-2:])
    found, scale = quantise_queries(flat, row, len(asked.lengths), KV_HEADS, asked.k.dtype)
    assert torch.equal(scale, wanted_scale), (scale, wanted_scale)
    assert torch.equal(found.view(wanted.shape).view(torch.uint8), wanted.view(torch.uint8))
    assert found.view(torch.uint8).any()
"""

ROWS_OF_EQUALLY_MANY = """
for queries in (1, 5):
    q = values(4, queries, KV_HEADS * GROUP, DIM)
    for row in range(4):  # a largest of its own in each row and head
        for head in range(KV_HEADS):
            q[row, -1, head * GROUP + 1, 7] = 448.0 * 2.0 ** (row - head)
    check(problem(q, 4), None)
    # Heads before tokens, as models have them.
    check(problem(q.transpose(1, 2).contiguous().transpose(1, 2), 4), None)
"""

PACKED = """
counts = [3, 0, 1, 4]
q = values(sum(counts), KV_HEADS * GROUP, DIM)
first = 0
for row, count in enumerate(counts):
    if count:
        q[first, ::GROUP, 3] = -448.0 * 2.0 ** row
    first += count
asked = problem(q, len(counts), counts)
check(asked, row_of_query(asked))
"""

NOT_FINITE = """
q = values(2, 1, KV_HEADS * GROUP, DIM)
q[:, :, ::GROUP, 0] = 448.0
q[0, 0, 1, 1], q[0, 0, 2, 2] = float("inf"), float("-inf")
check(problem(q, 2), None)
q[:] = 0.0
asked = problem(q, 2)
found, scale = quantise_queries(q[:, 0], None, 2, KV_HEADS, asked.k.dtype)
assert (scale == 1).all() and not found.float().any()
"""

NONE = """
q = values(0, KV_HEADS * GROUP, DIM)
row = torch.zeros(0, dtype=torch.int64)
found, scale = quantise_queries(q, row, 3, KV_HEADS, torch.float8_e4m3fn)
assert found.shape == q.shape and scale.shape == (3, KV_HEADS) and (scale == 1).all()
"""


@pytest.mark.parametrize("script", [ROWS_OF_EQUALLY_MANY, PACKED, NOT_FINITE, NONE])
def test_the_bytes_and_scales_of_torchs_operations(script):
    subprocess.run(
        [sys.executable, "-c", COMMON + script],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=ROOT,
        check=True,
        timeout=300,
    )
