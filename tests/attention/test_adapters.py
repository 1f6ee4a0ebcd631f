# SPDX-License-Identifier: Apache-2.0
"""Adapters of packages that need a GPU, against stand-ins with the packages' own signatures.

They show that slots, lengths, scale and causality arrive where each interface wants
them. What the real kernels give is shown in tests/gpu/test_gpu_attention.py.
"""

# ruff: noqa: E402
from __future__ import annotations

import itertools
import sys
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import NamedTuple

import pytest

torch = pytest.importorskip("torch")

import attention_cases
from feature_cases import Asked, expected

from pyvattn.attention import flash_attn3_build, flash_kvcache, optional, varlen
from pyvattn.attention.flash_attn2 import FlashAttention2Kernel
from pyvattn.attention.flash_attn3 import FlashAttention3Kernel
from pyvattn.attention.flash_attn3_paged import FlashAttention3PagedKernel
from pyvattn.attention.flash_attn4 import FlashAttention4Kernel
from pyvattn.attention.flashinfer import FlashInferKernel
from pyvattn.attention.problem import Problem
from pyvattn.attention.registry import choose
from pyvattn.attention.step import Step
from pyvattn.attention.varlen import VarlenKernel
from pyvattn.errors import UnsupportedError


def attend_row(q, k, v, scale, causal):
    """[queries, q_heads, dim] on [tokens, kv_heads, dim]; the last query sees the last token."""
    return attend_window(q, k, v, scale, causal)[0]


def attend_window(q, k, v, scale, causal, window=(-1, -1), softcap=0.0, slopes=None):
    """The same with what FlashAttention has besides; and the log-sum-exp, [q_heads, queries]."""
    group = q.shape[1] // k.shape[1]
    k, v = k.double().repeat_interleave(group, 1), v.double().repeat_interleave(group, 1)
    scores = torch.einsum("qhd,khd->hqk", q.double(), k) * scale
    if softcap:
        scores = softcap * (scores / softcap).tanh()
    ahead = torch.arange(k.shape[0]) - torch.arange(q.shape[0])[:, None] - (len(k) - len(q))
    if slopes is not None:
        scores = scores - slopes[:, None, None].double() * ahead.abs()
    left, right = window[0], 0 if causal else window[1]
    seen = torch.ones_like(ahead, dtype=torch.bool)
    seen &= (ahead >= -left) if left >= 0 else seen
    seen &= (ahead <= right) if right >= 0 else seen
    scores = scores.masked_fill(~seen, -torch.inf)
    out = torch.einsum("hqk,khd->qhd", scores.softmax(-1).nan_to_num(0.0), v)
    # FlashAttention's own mark of a query that sees nothing
    lse = scores.logsumexp(-1).float().masked_fill(~seen.any(-1), torch.inf)
    return out.to(q.dtype), lse


# Settings of each plan that was made, and whether each call was given one.
PLANNED, HAD_PLAN = [], []


def flash_attn_with_kvcache(
    q,
    k_cache,
    v_cache,
    *,
    cache_seqlens,
    cache_batch_idx,
    softmax_scale,
    causal,
    cache_leftpad=None,
    window_size=(-1, -1),
    softcap=0.0,
    return_softmax_lse=False,
    alibi_slopes=None,
    cu_seqlens_q=None,
    max_seqlen_q=None,
    page_table=None,
    scheduler_metadata=None,
):
    HAD_PLAN.append(scheduler_metadata is not None)
    if scheduler_metadata is not None:
        planned, lengths = scheduler_metadata
        assert torch.equal(lengths, cache_seqlens)
        assert planned["batch_size"] == len(q)
        assert planned["max_seqlen_q"] == q.shape[1]
        assert planned["window_size"] == window_size
        assert planned["has_softcap"] == (softcap > 0)
    assert cache_seqlens.dtype == cache_batch_idx.dtype == torch.int32
    if cu_seqlens_q is not None:
        assert cu_seqlens_q.dtype == torch.int32
        ends = cu_seqlens_q.tolist()
        assert max_seqlen_q == max(b - a for a, b in itertools.pairwise(ends))
        queries = [q[a:b] for a, b in itertools.pairwise(ends)]
    else:
        queries = list(q)
    rows = []
    for row, (slot, n) in enumerate(
        zip(cache_batch_idx.tolist(), cache_seqlens.tolist(), strict=True)
    ):
        first = 0
        if cache_leftpad is not None:
            assert cache_leftpad.dtype == torch.int32
            first = int(cache_leftpad[row])
        slopes = alibi_slopes
        if slopes is not None and slopes.dim() == 2:
            slopes = slopes[row]
        keys, values = (
            (k_cache[slot, first:n], v_cache[slot, first:n])
            if page_table is None
            else (by_block(cached, page_table[slot], first, n) for cached in (k_cache, v_cache))
        )
        rows.append(
            attend_window(
                queries[row], keys, values, softmax_scale, causal, window_size, softcap, slopes
            )
        )
    join = torch.stack if cu_seqlens_q is None else torch.cat
    out = join([row[0] for row in rows])
    if not return_softmax_lse:
        return out
    if cu_seqlens_q is None:
        return out, torch.stack([row[1] for row in rows])
    return out, torch.cat([row[1] for row in rows], dim=1)


def by_block(blocks, table, first, end):
    """A row's tokens, of blocks that lie where the table says; entries behind them are not read."""
    assert table.dtype == torch.int32
    size = blocks.shape[1]
    tokens = [blocks[table[token // size], token % size] for token in range(first, end)]
    return torch.stack(tokens) if tokens else blocks[0, :0]


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
    return_aux=None,
):
    assert enable_gqa
    out, lse = unequal_rows(
        query, key, value, cu_seq_q, cu_seq_k, max_q, scale, False, seqused_k, window_size
    )
    return out if return_aux is None else (out, lse)


class AuxRequest(NamedTuple):
    lse: bool


def varlen_attn_2_11(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size):
    raise AssertionError("it takes no lengths: the operator must be called")


def flash_attention_forward(
    q,
    k,
    v,
    starts_q,
    starts_k,
    max_q,
    max_k,
    dropout,
    causal,
    debug,
    *,
    scale,
    seqused_k,
    window_size_left=-1,
    window_size_right=-1,
):
    assert not dropout
    assert not debug
    window = (window_size_left, window_size_right)
    out, lse = unequal_rows(q, k, v, starts_q, starts_k, max_q, scale, causal, seqused_k, window)
    return out, lse, None, None, None


def unequal_rows(q, k, v, starts_q, starts_k, max_q, scale, causal, lengths, window):
    """What the kernel does with starts and lengths: it reads no other end of a row's keys."""
    assert starts_q.dtype == starts_k.dtype == lengths.dtype == torch.int32
    assert len(starts_q) == len(starts_k) == len(lengths) + 1
    out = torch.empty_like(q)
    lse = torch.empty(q.shape[1], q.shape[0])
    for row, length in enumerate(lengths.tolist()):
        first, end = starts_q[row : row + 2].tolist()
        assert end - first <= max_q
        keys = slice(starts_k[row], starts_k[row] + length)
        out[first:end], lse[:, first:end] = attend_window(
            q[first:end], k[keys], v[keys], scale, causal, window
        )
    return out, lse


FLASH_KVCACHE = [FlashAttention2Kernel(), FlashAttention3Kernel(), FlashAttention3PagedKernel()]


def get_scheduler_metadata(*, cache_seqlens, **settings):
    """What the kernel's plan was made of."""
    assert cache_seqlens.dtype == torch.int32
    PLANNED.append(settings)
    return settings, cache_seqlens


STAND_INS = {
    "flash_attn.flash_attn_interface": (flash_attn_with_kvcache,),
    "flash_attn_interface": (flash_attn_with_kvcache, get_scheduler_metadata),
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
        FlashAttention3PagedKernel(),
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


@pytest.mark.parametrize("kernel", FLASH_KVCACHE)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_adapters_hand_over_every_feature_that_they_have(kernel, causal, seed):
    check_features(kernel, causal, seed)


def check_features(kernel, causal, seed):
    case = attention_cases.open_case("layer", 2, 4, 32, guard_tokens=64, seed=seed)
    with case.cache:
        case.fill(4, 24)
        asked = Asked(causal, kernel.features, seed)
        q = asked.draw(case, 24)
        asked.options.pop("sinks", None)  # not the kernel's to add
        k, v = case.cache.layer(case.layer)
        problem = Problem(q, k, v, case.slots, case.lengths, causal, asked.scale, **asked.options)
        problem.check()
        wanted, sums = expected(case, q, asked)
        out, lse = kernel.attend_with_lse(problem)
        for result in (out, kernel.attend(problem)):
            torch.testing.assert_close(result.double(), wanted, atol=2e-5, rtol=2e-5)
        torch.testing.assert_close(lse.double(), sums, atol=2e-5, rtol=2e-5)


def test_layers_of_a_step_share_a_plan():
    """One for each kind of layer; rows of other lengths get another."""
    kernel, step = FlashAttention3Kernel(), Step()
    case = attention_cases.open_case("layer", 2, 4, 64, guard_tokens=64)
    with case.cache:
        case.fill(5, 100)
        q = case.queries(1)
        k, v = case.cache.layer(case.layer)
        scale = q.shape[-1] ** -0.5

        def attend(lengths, **options):
            problem = Problem(q, k, v, case.slots, lengths, True, scale, step=step, **options)
            return kernel.attend(problem)

        PLANNED.clear()
        HAD_PLAN.clear()
        wanted = case.expected(q, True)
        for _ in range(3):
            found = attend(case.lengths)
            torch.testing.assert_close(found.double(), wanted, atol=2e-5, rtol=2e-5)
        assert len(PLANNED) == 1
        assert PLANNED[0]["num_heads_kv"] == k.shape[2]
        assert PLANNED[0]["max_seqlen_k"] == k.shape[1]
        for _ in range(2):
            attend(case.lengths, window_size=(3, 0))
        assert [each["window_size"] for each in PLANNED] == [(-1, -1), (3, 0)]
        shorter = [max(1, length - 1) for length in case.lengths]
        attend(shorter)
        assert len(PLANNED) == 3
        assert all(HAD_PLAN)
        # Starts are made anew for each layer, so the kernel plans for itself.
        attend(case.lengths, starts=[0] * len(case.lengths))
        assert not HAD_PLAN[-1]


def test_without_a_step_the_kernel_plans_for_itself():
    problem = asked_for()
    FlashAttention3Kernel().attend(problem)
    assert not HAD_PLAN[-1]


@pytest.fixture
def build(monkeypatch):
    """Let the build of FlashAttention-3 say that it was made without something."""

    def without(*names):
        known = ("SOFTCAP", "LOCAL", "FP16", "VARLEN", "SPLIT", "HDIM128", "HDIM192", "HDIM256")
        flags = {f"FLASHATTENTION_DISABLE_{name}": name in names for name in known}
        module = ModuleType("flash_attn_config")
        module.CONFIG = {"build_flags": flags}
        monkeypatch.setitem(sys.modules, "flash_attn_config", module)
        forget()

    def forget():
        # Whether a package is there was perhaps asked before there was a stand-in for it.
        flash_attn3_build.left_out.cache_clear()
        optional.why_not_importable.cache_clear()

    # The tensors of these tests are not on the device that the kernel wants.
    monkeypatch.setattr(flash_kvcache, "why_not_flash", lambda *_: None)
    monkeypatch.setattr(optional, "why_no_device", lambda *_: None)
    yield without
    forget()


def asked_for(dtype=torch.float16, head_dim=64, **options):
    q, cached = torch.zeros(1, 1, 2, head_dim, dtype=dtype), torch.zeros(1, 8, 2, head_dim)
    return Problem(q, cached, cached, [0], [8], True, 1.0, **options)


@pytest.mark.parametrize(
    ("left_out", "refused", "reason", "taken"),
    [
        ("SOFTCAP", {"softcap": 30.0}, "without a softcap", {"window_size": (7, 0)}),
        ("LOCAL", {"window_size": (7, 0)}, "without a window", {"softcap": 30.0}),
        ("FP16", {}, "without float16", {"dtype": torch.bfloat16}),
        ("HDIM256", {"head_dim": 256}, "head dims to 192, not 256", {"head_dim": 192}),
    ],
)
def test_what_a_build_of_flash_attention_3_lacks_is_left_to_another_kernel(
    build, left_out, refused, reason, taken
):
    build()
    assert choose("auto", asked_for(**refused)).name == "flash-attn-3"
    build(left_out, "SPLIT", "HDIM128")
    with pytest.raises(UnsupportedError, match=f"kernel 'flash-attn-3': .*{reason}"):
        choose("flash-attn-3", asked_for(**refused))
    assert choose("auto", asked_for(**refused)).name != "flash-attn-3"
    assert choose("auto", asked_for(**taken)).name == "flash-attn-3"


def test_a_build_of_flash_attention_3_without_lengths_is_unavailable(build):
    build("VARLEN")
    assert "FLASH_ATTENTION_DISABLE_VARLEN" in FlashAttention3Kernel().unavailable()


@pytest.mark.parametrize("kernel", FLASH_KVCACHE)
def test_what_a_build_says_only_when_it_is_called_is_a_typed_error(monkeypatch, kernel):
    """A build of FlashAttention-2, or an old one of 3, does not say before what it lacks."""

    def refuses(*_, **__):
        raise RuntimeError(
            "mha_fwd, api.cpp:12, This flash attention build does not support tanh softcapping."
        )

    monkeypatch.setattr(kernel.module(), "flash_attn_with_kvcache", refuses)
    with pytest.raises(UnsupportedError, match=f"{kernel.name}.*made without tanh softcapping;"):
        kernel.attend(asked_for(softcap=30.0))


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


@pytest.mark.parametrize("kernel", FLASH_KVCACHE)
def test_the_device_of_the_queries_counts_and_not_the_current_one(monkeypatch, kernel):
    capability = {None: (9, 0), torch.device("cuda:1"): (7, 5)}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda d=None: capability.get(d))
    q = SimpleNamespace(device=torch.device("cuda:1"), dtype=torch.float16, shape=(1, 1, 4, 64))
    problem = SimpleNamespace(q=q, features=frozenset(), scales=None)
    assert "the device has 7.5" in kernel.unsupported(problem)
    capability[q.device] = (9, 0)
    assert kernel.unsupported(problem) is None


@pytest.mark.parametrize("newer", [True, False], ids=["torch 2.13", "torch 2.11"])
@pytest.mark.parametrize("layout", ["layer", "token"])
@pytest.mark.parametrize("queries", [1, 4, 120])
@pytest.mark.parametrize("causal", [True, False])
def test_torchs_own_kernel_gets_where_rows_begin(monkeypatch, newer, layout, queries, causal):
    with torch_of(newer, monkeypatch):
        test_adapters_hand_over_slots_lengths_and_scale(VarlenKernel(), layout, queries, causal)


@pytest.mark.parametrize("newer", [True, False], ids=["torch 2.13", "torch 2.11"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_torchs_own_kernel_gets_every_feature_that_it_has(monkeypatch, newer, causal, seed):
    with torch_of(newer, monkeypatch):
        check_features(VarlenKernel(), causal, seed)


@contextmanager
def torch_of(newer, monkeypatch):
    module = ModuleType("torch.nn.attention.varlen")
    module.varlen_attn = varlen_attn if newer else varlen_attn_2_11
    module.AuxRequest = AuxRequest
    monkeypatch.setitem(sys.modules, module.__name__, module)
    if not newer:
        monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", flash_attention_forward)
    varlen._takes_lengths.cache_clear()
    try:
        yield
    finally:
        varlen._takes_lengths.cache_clear()


def test_rows_that_lie_no_whole_number_of_tokens_apart_are_not_for_torchs_own_kernel():
    """A token of 3 x 8 floats takes 96 bytes, of which a page holds no whole number."""
    case = attention_cases.open_case("layer", 3, 3, 8, seed=1)
    with case.cache:
        k, v = case.cache.layer(0)
        problem = Problem(case.queries(1), k, v, [], [], True, 1.0)
        assert "whole number of tokens" in VarlenKernel().unsupported(problem)
