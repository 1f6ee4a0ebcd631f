# SPDX-License-Identifier: Apache-2.0
"""The kernel that stores new tokens on a GPU, by Triton's interpreter on the host.

That has to be asked for before Triton is imported, so each test is a process of its own. It does
not carry when it rounds to float8, so the values are exact there; that a GPU rounds as torch does
is shown in tests/gpu.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the kernel stores tensors of torch")
pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")

ROOT = Path(__file__).resolve().parents[2]

# Tokens in every shape that append takes, by places that broadcast, some from the end.
COMMON = """
import torch
from pyvattn.attention.append_triton import append_fused
from pyvattn.attention.kv_scales import LayerScales
from pyvattn.attention.quantise import quantised

torch.manual_seed(1)
PLACES = (
    ((5,), torch.tensor([2]), torch.arange(5)),
    ((2, 4), torch.tensor([[1], [3]]), torch.arange(4).expand(2, 4)),
    ((2, 3, 2), torch.tensor(0), torch.arange(12).view(2, 3, 2)),
    ((3, 1), torch.tensor([[0], [1], [-1]], dtype=torch.int32), torch.tensor([[-1], [7], [0]])),
)


def heads_first(new):  # as models have them: heads before tokens
    return new.transpose(-2, -3).contiguous().transpose(-2, -3)


def cache(*shape, dtype=torch.float32):
    # Larger than what a heap serves. The kernel gets addresses as numbers, and the interpreter
    # takes those of a heap, which fit in 32 bits where Python is loaded low, for 32 bits.
    memory = torch.zeros(48 << 20, dtype=torch.uint8)
    return memory.view(dtype)[: torch.Size(shape).numel()].view(shape)


def same_bytes(one, other):
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))
"""

QUANTISED = """
scales = LayerScales(torch.tensor([0.25, 4.0, 2.0]), torch.tensor([0.5, 8.0, 0.125]))
sizes = torch.tensor([0.5, 1.0, 1.25, 3.5, 28.0, 224.0, 1e6])


def values(scale, shape):
    small = sizes[torch.randint(len(sizes), shape)] * torch.randn(shape).sign()
    return small * scale[:, None]


for lead, slots, at in PLACES:
    for swapped in (False, True):
        new = [values(scale, (*lead, 3, 24)) for scale in scales]
        if swapped:
            new = [heads_first(each.bfloat16()) for each in new]
        caches, wanted = [[cache(4, 16, 3, 24, dtype={dtype}) for _ in "kv"] for _ in "ab"]
        append_fused(slots, at, tuple(new), tuple(caches), scales)
        for found, want, each, scale in zip(caches, wanted, new, scales):
            want.index_put_((slots, at), quantised(each, scale, want.dtype))
            assert same_bytes(found, want), (lead, swapped)
            assert found.view(torch.uint8).any()
"""

AS_THEY_ARE = """
for lead, slots, at in PLACES:
    for swapped in (False, True):
        # V is narrower, and other layers lie in between, as in layout "token".
        new = [torch.randn(*lead, 3, dim).to({dtype}) for dim in (24, 20)]
        if swapped:
            new = [heads_first(each) for each in new]
        caches, wanted = [
            [cache(4, 16, 2, 3, dim, dtype={dtype})[:, :, 1] for dim in (24, 20)] for _ in "ab"
        ]
        append_fused(slots, at, tuple(new), caches, None)
        for found, want, each in zip(caches, wanted, new):
            want.index_put_((slots, at), each)
            assert same_bytes(found, want), (lead, swapped)
            assert found.contiguous().view(torch.uint8).any()
"""

OUTSIDE = """
caches = [cache(4, 16, 3, 24) for _ in "kv"]
new = tuple(torch.ones(3, 3, 24) for _ in "kv")
append_fused(torch.tensor([4, 0, -5]), torch.tensor([0, 16, 0]), new, tuple(caches), None)
assert not any(each.any() for each in caches)
append_fused(torch.tensor([3, 0, -4]), torch.tensor([0, 15, -16]), new, tuple(caches), None)
assert all(each.sum() == new[0].numel() for each in caches)
"""


def run(script: str) -> None:
    subprocess.run(
        [sys.executable, "-c", COMMON + script],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=ROOT,
        check=True,
        timeout=300,
    )


@pytest.mark.parametrize("dtype", ["torch.float8_e4m3fn", "torch.float8_e5m2"])
def test_the_bytes_that_torchs_operations_quantise(dtype):
    run(QUANTISED.format(dtype=dtype))


@pytest.mark.parametrize("dtype", ["torch.float32", "torch.float16", "torch.bfloat16"])
def test_tokens_are_stored_as_they_are(dtype):
    run(AS_THEY_ARE.format(dtype=dtype))


def test_places_outside_the_cache_are_passed_over():
    run(OUTSIDE)
