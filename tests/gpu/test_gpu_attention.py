# SPDX-License-Identifier: Apache-2.0
"""Every kernel that can be imported, on memory mapped by `cumem`, against float64."""

# ruff: noqa: E402
from __future__ import annotations

import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

sys.path.insert(0, str(Path(__file__).parents[1] / "attention"))

import attention_cases
from feature_cases import Asked, expected

from pyvattn.attention import append, attend, kernel_infos
from pyvattn.attention.flash_attn3_build import features_left_out
from pyvattn.attention.registry import _KERNELS
from pyvattn.errors import UnsupportedError

KERNELS = [info.name for info in kernel_infos() if info.unavailable is None] or ["none"]
CAPTURABLE = [name for name in KERNELS if _KERNELS[name].capturable] if KERNELS != ["none"] else []


def open_case(layout, kv_heads, q_heads, head_dim, dtype="bfloat16", seed=0, **options):
    return attention_cases.open_case(
        layout,
        kv_heads,
        q_heads,
        head_dim,
        dtype=dtype,
        seed=seed,
        device="cuda",
        driver="cumem",
        max_tokens=4096,
        **options,
    )


def check(case, q, kernel, causal=True):
    try:
        out = attend(
            q, case.cache, case.layer, case.slots, case.lengths, causal=causal, kernel=kernel
        )
    except UnsupportedError as error:
        pytest.skip(str(error))
    torch.testing.assert_close(out.double(), case.expected(q, causal), atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("layout", ["layer", "token"])
@pytest.mark.parametrize(("kv_heads", "q_heads"), [(2, 8), (4, 4)])
@pytest.mark.parametrize("head_dim", [64, 96, 128, 192, 256])
@pytest.mark.parametrize("queries", [1, 7, 600])
def test_kernels_match_float64(kernel, layout, kv_heads, q_heads, head_dim, queries):
    case = open_case(layout, kv_heads, q_heads, head_dim, seed=head_dim + queries)
    with case.cache:
        case.fill(5, 600)
        check(case, case.queries(queries), kernel)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("kv_heads", "q_heads"), [(2, 8), (4, 4)])
def test_a_chunk_of_a_prompt_on_what_is_cached(kernel, kv_heads, q_heads):
    case = open_case("layer", kv_heads, q_heads, 128, seed=4)
    with case.cache:
        case.fill(5, 600)
        check(case, case.queries(64), kernel)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("layout", ["layer", "token"])
def test_without_causality(kernel, layout):
    case = open_case(layout, 2, 8, 128, seed=1)
    with case.cache:
        case.fill(4, 1000)
        check(case, case.queries(5), kernel, causal=False)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("queries", [1, 60])
def test_more_queries_than_tokens_and_rows_of_none(kernel, causal, queries):
    case = open_case("layer", 2, 8, 128, seed=7)
    with case.cache:
        case.fill(4, 40)
        case.empty(1)
        check(case, case.queries(queries), kernel, causal)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("seed", range(8))
def test_every_feature_that_a_kernel_has(kernel, causal, head_dim, seed):
    """By turns each of them alone and all of them together."""
    missing = features_left_out() if kernel.startswith("flash-attn-3") else frozenset()
    has = sorted(_KERNELS[kernel].features - missing, key=lambda feature: feature.name)
    if not has:
        pytest.skip(f"{kernel} attends to whole rows only")
    chosen = has if seed >= len(has) else [has[seed]]
    case = open_case("layer", 2, 8, head_dim, seed=seed)
    with case.cache:
        case.fill(4, 300)
        asked = Asked(causal, frozenset(chosen), seed)
        q = asked.draw(case, 70)
        place = (case.cache, case.layer, case.slots, case.lengths)
        call = {"causal": causal, "scale": asked.scale, "kernel": kernel, **asked.options}
        try:
            out = attend(q, *place, **call)
        except UnsupportedError as error:
            pytest.skip(str(error))
        wanted, _ = expected(case, q, asked)
        torch.testing.assert_close(out.double().cpu(), wanted, atol=2e-2, rtol=2e-2)


@pytest.mark.skipif("flash-attn-3" not in KERNELS, reason="flash-attn-3 cannot be used here")
def test_what_a_build_of_flash_attention_3_lacks_is_left_to_another_kernel():
    if not (missing := features_left_out()):
        pytest.skip("this build of FlashAttention-3 lacks nothing")
    case = open_case("layer", 2, 8, 128, seed=9)
    with case.cache:
        case.fill(4, 300)
        asked = Asked(True, missing, seed=9)
        q = asked.draw(case, 70)
        place = (case.cache, case.layer, case.slots, case.lengths)
        call = {"scale": asked.scale, **asked.options}
        with pytest.raises(UnsupportedError, match="made without"):
            attend(q, *place, kernel="flash-attn-3", **call)
        wanted, _ = expected(case, q, asked)
        out = attend(q, *place, **call)
        torch.testing.assert_close(out.double().cpu(), wanted, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("kernel", ["auto", *KERNELS])
def test_float8_is_for_the_reference_and_refused_by_the_others(kernel):
    case = open_case("layer", 2, 8, 128, dtype="float8_e4m3fn", seed=8)
    with case.cache:
        case.fill(3, 100)
        q = case.queries(3)
        if kernel not in ("auto", "reference"):
            with pytest.raises(UnsupportedError, match="float8_e4m3fn"):
                attend(q, case.cache, case.layer, case.slots, case.lengths, kernel=kernel)
            return
        out = attend(q, case.cache, case.layer, case.slots, case.lengths, kernel=kernel)
        torch.testing.assert_close(out.double(), case.expected(q), atol=0.02, rtol=0.13)


@pytest.mark.parametrize("kernel", KERNELS)
def test_long_contexts_and_float16(kernel):
    case = open_case("layer", 2, 8, 128, dtype="float16", seed=2)
    with case.cache:
        case.fill(5, 4000)
        check(case, case.queries(1), kernel)


@pytest.mark.parametrize("kernel", CAPTURABLE or ["none"])
@pytest.mark.parametrize("layout", ["layer", "token"])
def test_one_captured_decode_step_serves_growing_slots(kernel, layout):
    if kernel == "none":
        pytest.skip("neither flash-attn 2 nor 3 can be imported")
    case = open_case(layout, 2, 8, 128, seed=3)
    cache = case.cache
    with cache:
        live = {cache.acquire(4000): 0 for _ in range(4)}
        slots = torch.tensor([slot.index for slot in live], device="cuda", dtype=torch.int32)
        lengths = torch.ones(4, device="cuda", dtype=torch.int32)
        q = torch.randn(4, 1, 8, 128, device="cuda", dtype=torch.bfloat16)
        new = torch.randn(2, 4, 1, 2, 128, device="cuda", dtype=torch.bfloat16)

        def decode():
            at = (lengths - 1).long()[:, None]
            append(cache, 1, slots.long()[:, None], at, new[0], new[1])
            return attend(q, cache, 1, slots, lengths, kernel=kernel)

        cache.step(dict.fromkeys(live, 1))
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            decode()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = decode()

        kept = [([], []) for _ in live]
        for step in range(1, 1500):
            cache.step(dict.fromkeys(live, step))
            lengths.fill_(step)
            new.normal_()
            q.normal_()
            graph.replay()
            for row, (k, v) in enumerate(kept):
                k.append(new[0, row, 0].double().cpu())
                v.append(new[1, row, 0].double().cpu())
        case.kept = [(torch.stack(k), torch.stack(v)) for k, v in kept]
        case.lengths = [1499] * 4
        torch.testing.assert_close(out.double(), case.expected(q), atol=2e-2, rtol=2e-2)
