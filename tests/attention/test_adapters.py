"""Adapters of packages that need a GPU, against stand-ins with the packages' own signatures.

They show that slots, lengths, scale and causality arrive where each interface wants
them. What the real kernels give is shown in tests/gpu/test_gpu_attention.py.
"""

# ruff: noqa: E402
from __future__ import annotations

import sys
from types import ModuleType

import pytest

torch = pytest.importorskip("torch")

import attention_cases

from pyvattn.attention.flash_attn2 import FlashAttention2Kernel
from pyvattn.attention.flash_attn3 import FlashAttention3Kernel
from pyvattn.attention.flash_attn4 import FlashAttention4Kernel
from pyvattn.attention.flashinfer import FlashInferKernel
from pyvattn.attention.problem import Problem


def attend_row(q, k, v, scale, causal):
    """[queries, q_heads, dim] on [tokens, kv_heads, dim]; the last query sees the last token."""
    group = q.shape[1] // k.shape[1]
    k, v = k.double().repeat_interleave(group, 1), v.double().repeat_interleave(group, 1)
    scores = torch.einsum("qhd,khd->hqk", q.double(), k) * scale
    if causal:
        seen = torch.ones(q.shape[0], k.shape[0], dtype=torch.bool)
        scores = scores.masked_fill(~seen.tril(k.shape[0] - q.shape[0]), -torch.inf)
    out = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v)
    return out.nan_to_num(0.0).to(q.dtype)  # a query that sees nothing gives zero


def flash_attn_with_kvcache(
    q, k_cache, v_cache, *, cache_seqlens, cache_batch_idx, softmax_scale, causal
):
    assert cache_seqlens.dtype == cache_batch_idx.dtype == torch.int32
    rows = zip(q, cache_batch_idx.tolist(), cache_seqlens.tolist(), strict=True)
    return torch.stack(
        [
            attend_row(row, k_cache[slot, :n], v_cache[slot, :n], softmax_scale, causal)
            for row, slot, n in rows
        ]
    )


def flash_attn_varlen_func(q, k, v, *, seqused_k, softmax_scale, causal):
    assert q.shape[0] == k.shape[0] == v.shape[0] == len(seqused_k)
    assert seqused_k.dtype == torch.int32
    rows = zip(q, k, v, seqused_k.tolist(), strict=True)
    out = torch.stack([attend_row(a, b[:n], c[:n], softmax_scale, causal) for a, b, c, n in rows])
    return out, None


def single_decode_with_kv_cache(q, k, v, *, kv_layout, use_tensor_cores, sm_scale):
    assert kv_layout == "NHD"
    assert k.is_contiguous(), "FlashInfer computes the strides of K itself"
    assert v.is_contiguous()
    return attend_row(q[None], k, v, sm_scale, causal=False)[0]


def single_prefill_with_kv_cache(q, k, v, *, causal, kv_layout, sm_scale):
    assert kv_layout == "NHD"
    return attend_row(q, k, v, sm_scale, causal)


STAND_INS = {
    "flash_attn": (flash_attn_with_kvcache,),
    "flash_attn_interface": (flash_attn_with_kvcache,),
    "flash_attn.cute": (flash_attn_varlen_func,),
    "flashinfer": (single_decode_with_kv_cache, single_prefill_with_kv_cache),
}


@pytest.fixture(autouse=True)
def _stand_ins(monkeypatch):
    for name, functions in STAND_INS.items():
        module = ModuleType(name)
        for function in functions:
            setattr(module, function.__name__, function)
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize(
    "kernel",
    [
        FlashAttention2Kernel(),
        FlashAttention3Kernel(),
        FlashAttention4Kernel(),
        FlashInferKernel(),
    ],
    ids=lambda kernel: kernel.name,
)
@pytest.mark.parametrize("layout", ["layer", "token"])
@pytest.mark.parametrize("queries", [1, 4, 60])
@pytest.mark.parametrize("causal", [True, False])
def test_adapters_hand_over_slots_lengths_and_scale(kernel, layout, queries, causal):
    case = attention_cases.open_case(layout, 2, 4, 64, guard_tokens=64, seed=queries)
    with case.cache:
        case.fill(5, 100)
        q = case.queries(queries)
        k, v = case.cache.layer(case.layer)
        problem = Problem(q, k, v, case.slots, case.lengths, causal, q.shape[-1] ** -0.5)
        problem.check()
        out = kernel.attend(problem)
        torch.testing.assert_close(out.double(), case.expected(q, causal), atol=2e-5, rtol=2e-5)
