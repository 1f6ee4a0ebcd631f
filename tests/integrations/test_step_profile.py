# SPDX-License-Identifier: Apache-2.0
"""``bench transformers --profile``: kernels by their names, gaps, limits, and a run on the CPU."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from tiny_models import torch

from pyvattn import CacheSpec
from pyvattn.bench import random_model
from pyvattn.bench.report import Measure, Report, Setup
from pyvattn.bench.step_events import (
    APPEND,
    ATTENTION,
    COPIES,
    GAPS,
    GEMM,
    MAPPING,
    NORMS,
    OTHER,
    PARTS,
    SAMPLING,
    KernelEvent,
    names_of,
    part_of,
    seconds_by_part,
)
from pyvattn.bench.step_limits import Rates, Tokens, Work, work_of
from pyvattn.bench.step_profile import kernels_of
from pyvattn.bench.transformers import Options, measure

SMALL = {"model": "tiny", "device": "cpu", "requests": 3, "prompt_tokens": 20, "new_tokens": 8}


@pytest.mark.parametrize(
    ("name", "part"),
    [
        # of an H200, torch 2.11
        (
            "void cutlass::device_kernel<flash::enable_sm90<flash::FlashAttnFwdSm90<...>>>",
            ATTENTION,
        ),
        ("void flash::flash_fwd_splitkv_combine_kernel<Flash_fwd_kernel_traits<...>>", ATTENTION),
        ("fmha_cutlassF_bf16_aligned_64x128_rf_sm80", ATTENTION),
        ("nvjet_tst_192x192_64x4_2x1_v_bz_coopB_TNN", GEMM),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", GEMM),
        ("void gemv2T_kernel_val<int, int, __nv_bfloat16, float>", GEMM),
        ("void cublasLt::splitKreduce_kernel<32, 16, int, float>", GEMM),
        ("_append", APPEND),
        ("void at::native::index_elementwise_kernel<128, 4, index_put_kernel_impl>", APPEND),
        ("void at::native::reduce_kernel<512, 1, ReduceOp<float, ArgMaxOps<float>>>", SAMPLING),
        ("void at::native::reduce_kernel<512, 1, ReduceOp<float, MeanOps<float>>>", NORMS),
        ("triton_red_fused__to_copy_add_mean_mul_pow_rsqrt_0", NORMS),
        ("void at::native::vectorized_elementwise_kernel<4, silu_kernel>", NORMS),
        ("void at::native::elementwise_kernel<128, 4, direct_copy_kernel_cuda>", COPIES),
        ("Memcpy DtoD (Device -> Device)", COPIES),
        ("Memset (Device)", COPIES),
        ("void at::native::vectorized_gather_kernel<16, long>", OTHER),
        ("something_nobody_knows", OTHER),
        # of torch on a CPU
        ("aten::addmm", GEMM),
        ("aten::mm", GEMM),
        ("aten::scaled_dot_product_attention", ATTENTION),
        ("aten::index_put_", APPEND),
        ("aten::mul", NORMS),
        ("aten::copy_", COPIES),
        ("aten::empty", OTHER),
    ],
)
def test_a_kernel_is_known_by_its_name(name, part):
    assert part_of(name) == part


def test_time_without_kernels_is_mapping_first_and_launch_gaps_then():
    events = [
        KernelEvent("nvjet", 10.0, 12.0),
        KernelEvent("flash", 11.5, 13.0),  # half a second beside the other one
        KernelEvent("nvjet", 11.0, 11.25),  # within it
        KernelEvent("_append", 14.0, 14.5),
    ]
    found = seconds_by_part(events, seconds=6.0, waited=0.5)
    assert set(found) == set(PARTS)
    assert found[GEMM] == pytest.approx(2.0)
    assert found[ATTENTION] == pytest.approx(1.0)
    assert found[APPEND] == pytest.approx(0.5)
    assert found[MAPPING] == pytest.approx(0.5)
    assert found[GAPS] == pytest.approx(2.0)
    assert sum(found.values()) == pytest.approx(6.0)


def test_waiting_that_kernels_hid_is_not_counted():
    found = seconds_by_part([KernelEvent("nvjet", 0.0, 1.0)], seconds=1.0, waited=0.5)
    assert found[MAPPING] == found[GAPS] == 0.0


def test_the_longest_kernels_of_a_part_are_named():
    events = [KernelEvent("nvjet_a", 0, 1), KernelEvent("nvjet_b", 1, 4), KernelEvent("x", 4, 9)]
    assert names_of(events, GEMM) == ["nvjet_b", "nvjet_a"]


def test_a_part_is_bound_by_the_slower_of_bytes_and_operations():
    rates = Rates(copied=100.0, operations=1000.0)
    assert Work(50.0, 100.0).least(rates) == (0.5, "bytes")
    assert Work(50.0, 700.0).least(rates) == (0.7, "operations")


def test_the_work_of_a_decode_step_is_that_of_its_matrices_and_its_cache():
    model = random_model.make_model("tiny", "cpu")
    config = model.config
    spec = CacheSpec(config.num_hidden_layers, 2, config.head_dim, dtype="float32")
    works = work_of(model, spec, Tokens(computed=5, read=500, pairs=500, sampled=5))
    hidden, feed, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    projections = 2 * hidden * hidden + 2 * hidden * 2 * config.head_dim
    layer = projections + 3 * hidden * feed
    matrices = config.num_hidden_layers * layer + hidden * config.vocab_size
    assert works[GEMM] == Work(4 * matrices, 2 * 5 * matrices)
    # K and V of 2 heads in float32, each once; a product with K and one with V.
    assert works[ATTENTION].bytes == 500 * config.num_hidden_layers * 2 * 2 * config.head_dim * 4
    each = 2 * 2 * heads * config.head_dim
    assert works[ATTENTION].operations == 500 * config.num_hidden_layers * each
    assert works[SAMPLING].bytes == 5 * config.vocab_size * 4


def event(name, start, end, device="CPU", children=(), annotation=False):
    made = SimpleNamespace(
        name=name,
        device_type=f"DeviceType.{device}",
        cpu_parent=None,
        cpu_children=list(children),
        is_user_annotation=annotation,
        time_range=SimpleNamespace(start=start, end=end),
    )
    for child in children:
        child.cpu_parent = made
    return made


def test_kernels_are_taken_from_the_device_and_operators_only_once():
    inner = event("aten::mm", 2, 4)
    linear = event("aten::linear", 1, 5, children=[event("aten::t", 1, 2), inner])
    sdpa = event("aten::scaled_dot_product_attention", 6, 9, children=[event("aten::bmm", 7, 8)])
    kernel = event("nvjet", 2_000_000, 3_000_000, "CUDA")
    marked = event("a step", 0, 9_000_000, "CUDA", annotation=True)
    events = [linear, inner, sdpa, kernel, marked]
    assert list(kernels_of(events, on_gpu=True)) == [KernelEvent("nvjet", 2.0, 3.0)]
    operators = [each.name for each in kernels_of([linear, inner, sdpa], on_gpu=False)]
    assert operators == ["aten::t", "aten::mm", "aten::scaled_dot_product_attention"]


@pytest.fixture(scope="module")
def profiled():
    return list(measure(Options(**SMALL, profile=True)))


def test_both_kinds_of_steps_are_taken_apart_and_their_shares_are_whole(profiled):
    (setup,) = (one for one in profiled if isinstance(one, Setup))
    phases = setup.values["phases"]
    assert list(phases) == ["a step of prompts", "a step of decode"]
    for parts in phases.values():
        assert list(parts) == list(PARTS)
        assert sum(part["share"] for part in parts.values()) == pytest.approx(1.0)
        for part in (ATTENTION, GEMM, NORMS, APPEND, SAMPLING):
            assert parts[part]["seconds"] > 0, part
            assert parts[part]["least_seconds"] > 0
    found = {one.name: one for one in profiled if isinstance(one, Measure)}
    decode = found["a step of decode: GEMM"]
    assert decode.value == pytest.approx(1e3 * phases["a step of decode"]["GEMM"]["seconds"])
    assert decode.note.startswith("at least ")
    assert found["a step of decode: launch gaps"].note == ""


def test_the_picture_is_drawn_from_the_json(profiled, tmp_path):
    pytest.importorskip("matplotlib", reason="pip install 'pyvattn[plot]'")
    from pyvattn.plots import plot_profile

    measures = [one for one in profiled if isinstance(one, Measure)]
    setups = [one for one in profiled if isinstance(one, Setup)]
    file = Report("transformers", measures, setups).write(tmp_path / "profile.json")
    plot_profile(json.loads(file.read_text()), tmp_path / "profile.png")
    assert (tmp_path / "profile.png").read_bytes().startswith(b"\x89PNG")


def test_our_cache_may_hold_float8_while_steps_are_taken_apart():
    found = list(measure(Options(**SMALL, profile=True, kv_dtype="float8_e4m3fn")))
    (setup,) = (one for one in found if isinstance(one, Setup))
    assert "KV in float8_e4m3fn" in setup.values["ours"]
    assert torch.float8_e4m3fn.itemsize == 1
