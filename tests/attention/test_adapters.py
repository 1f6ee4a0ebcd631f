# SPDX-License-Identifier: Apache-2.0
"""Adapters of packages that need a GPU, against stand-ins with the packages' own signatures.

They show that slots, lengths, scale and causality arrive where each interface wants
them. What the real kernels give is shown in tests/gpu/test_gpu_attention.py.
"""

# ruff: noqa: E402
from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

import attention_cases

from pyvattn.attention import optional, varlen
from pyvattn.attention.flash_attn2 import FlashAttention2Kernel
from pyvattn.attention.flash_attn3 import FlashAttention3Kernel
from pyvattn.attention.flash_attn4 import FlashAttention4Kernel
from pyvattn.attention.flashinfer import FlashInferKernel
from pyvattn.attention.problem import Problem
from pyvattn.attention.varlen import VarlenKernel


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


def varlen_attn(
    query,
    key,
    value,
    cu_seq_q,
    cu_seq_k,
    max_q,
    max_k,
    *,
    scale,
    window_size,
    enable_gqa,
    seqused_k,
):
    assert window_size in ((-1, 0), (-1, -1))
    assert enable_gqa
    causal = window_size == (-1, 0)
    return unequal_rows(query, key, value, cu_seq_q, cu_seq_k, max_q, scale, causal, seqused_k)


def varlen_attn_2_11(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size):
    raise AssertionError("it takes no lengths: the operator must be called")


def flash_attention_forward(
    q, k, v, starts_q, starts_k, max_q, max_k, dropout, causal, debug, *, scale, seqused_k
):
    assert not dropout
    assert not debug
    return unequal_rows(q, k, v, starts_q, starts_k, max_q, scale, causal, seqused_k), None


def unequal_rows(q, k, v, starts_q, starts_k, max_q, scale, causal, lengths):
    """What the kernel does with starts and lengths: it reads no other end of a row's keys."""
    assert starts_q.dtype == starts_k.dtype == lengths.dtype == torch.int32
    assert len(starts_q) == len(starts_k) == len(lengths) + 1
    out = torch.empty_like(q)
    for row, length in enumerate(lengths.tolist()):
        first, end = starts_q[row : row + 2].tolist()
        assert end - first == max_q
        keys = slice(starts_k[row], starts_k[row] + length)
        out[first:end] = attend_row(q[first:end], k[keys], v[keys], scale, causal)
    return out


STAND_INS = {
    "flash_attn.flash_attn_interface": (flash_attn_with_kvcache,),
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
@pytest.mark.parametrize("queries", [1, 4, 120])
@pytest.mark.parametrize("causal", [True, False])
def test_adapters_hand_over_slots_lengths_and_scale(kernel, layout, queries, causal):
    case = attention_cases.open_case(layout, 2, 4, 64, guard_tokens=64, seed=queries)
    with case.cache:
        case.fill(5, 100)
        case.empty(2)
        q = case.queries(queries)
        k, v = case.cache.layer(case.layer)
        problem = Problem(q, k, v, case.slots, case.lengths, causal, q.shape[-1] ** -0.5)
        problem.check()
        out = kernel.attend(problem)
        torch.testing.assert_close(out.double(), case.expected(q, causal), atol=2e-5, rtol=2e-5)


def test_flash_attention_4_by_itself_is_not_taken_for_2(monkeypatch, tmp_path):
    """Its package lies in a folder `flash_attn`, which Python imports without a module there."""
    (tmp_path / "flash_attn" / "cute").mkdir(parents=True)
    (tmp_path / "flash_attn" / "cute" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("flash_attn", "flash_attn.flash_attn_interface", "flash_attn.cute"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))  # so that it is gone afterwards
        monkeypatch.delitem(sys.modules, name)
    optional.why_not_importable.cache_clear()
    try:
        assert "pip install flash-attn" in FlashAttention2Kernel().unavailable()
        assert "not installed" not in (FlashAttention4Kernel().unavailable() or "")
    finally:
        optional.why_not_importable.cache_clear()


@pytest.mark.parametrize("kernel", [FlashAttention2Kernel(), FlashAttention3Kernel()])
def test_the_device_of_the_queries_counts_and_not_the_current_one(monkeypatch, kernel):
    capability = {None: (9, 0), torch.device("cuda:1"): (7, 5)}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda d=None: capability.get(d))
    q = SimpleNamespace(device=torch.device("cuda:1"), dtype=torch.float16, shape=(1, 1, 4, 64))
    assert "the device has 7.5" in kernel.unsupported(SimpleNamespace(q=q))
    capability[q.device] = (9, 0)
    assert kernel.unsupported(SimpleNamespace(q=q)) is None


@pytest.mark.parametrize("newer", [True, False], ids=["torch 2.13", "torch 2.11"])
@pytest.mark.parametrize("layout", ["layer", "token"])
@pytest.mark.parametrize("queries", [1, 4, 120])
@pytest.mark.parametrize("causal", [True, False])
def test_torchs_own_kernel_gets_where_rows_begin(monkeypatch, newer, layout, queries, causal):
    module = ModuleType("torch.nn.attention.varlen")
    module.varlen_attn = varlen_attn if newer else varlen_attn_2_11
    monkeypatch.setitem(sys.modules, module.__name__, module)
    if not newer:
        monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", flash_attention_forward)
    varlen._takes_lengths.cache_clear()
    try:
        test_adapters_hand_over_slots_lengths_and_scale(VarlenKernel(), layout, queries, causal)
    finally:
        varlen._takes_lengths.cache_clear()


def test_rows_that_lie_no_whole_number_of_tokens_apart_are_not_for_torchs_own_kernel():
    """A token of 3 x 8 floats takes 96 bytes, of which a page holds no whole number."""
    case = attention_cases.open_case("layer", 3, 3, 8, seed=1)
    with case.cache:
        k, v = case.cache.layer(0)
        problem = Problem(case.queries(1), k, v, [], [], True, 1.0)
        assert "whole number of tokens" in VarlenKernel().unsupported(problem)
