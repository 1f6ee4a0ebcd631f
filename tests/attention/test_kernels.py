# SPDX-License-Identifier: Apache-2.0
"""Every attention kernel that runs on a CPU, against float64 over random requests."""

# ruff: noqa: E402
from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import attention_cases

from pyvattn.attention import FlexKernel, attend, kernel_infos, register
from pyvattn.attention.rows import consecutive
from pyvattn.errors import UnsupportedError

KERNELS = ["reference", "sdpa", "sdpa-math", "sdpa-flash", "flex"]
# kv_heads, q_heads, queries: GQA and MHA; decode, a mixed batch and prefill
SHAPES = [(2, 8, 1), (2, 8, 5), (2, 8, 150), (4, 4, 1), (4, 4, 150), (1, 3, 5)]
GUARD = 64

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


@pytest.fixture(params=["layer", "token"])
def layout(request):
    return request.param


def check(case, q, kernel, causal=True, tolerance=2e-5):
    out = attend(q, case.cache, case.layer, case.slots, case.lengths, causal=causal, kernel=kernel)
    assert out.shape == q.shape
    assert out.dtype == q.dtype
    torch.testing.assert_close(
        out.double().cpu(), case.expected(q, causal), atol=tolerance, rtol=tolerance
    )


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("kv_heads", "q_heads", "queries"), SHAPES)
def test_decode_mixed_and_prefill_match_float64(kernel, kv_heads, q_heads, queries, layout):
    case = attention_cases.open_case(layout, kv_heads, q_heads, 64, guard_tokens=GUARD)
    with case.cache:
        case.fill(3, 150)
        check(case, case.queries(queries), kernel)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("head_dim", [64, 96, 128, 192, 256])
def test_head_dims_match_float64(kernel, head_dim, layout):
    case = attention_cases.open_case(layout, 2, 4, head_dim, guard_tokens=GUARD, seed=head_dim)
    with case.cache:
        case.fill(2, 100)
        check(case, case.queries(3), kernel)


@pytest.mark.parametrize("kernel", KERNELS)
def test_without_causality_every_query_sees_every_token(kernel, layout):
    case = attention_cases.open_case(layout, 2, 4, 64, guard_tokens=GUARD, seed=1)
    with case.cache:
        case.fill(2, 100)
        check(case, case.queries(4), kernel, causal=False)


@pytest.mark.parametrize("kernel", ["auto", *KERNELS])
@pytest.mark.parametrize("causal", [True, False])
def test_more_queries_than_tokens_and_rows_of_none(kernel, layout, causal):
    """FlashAttention's results: queries before the first token attend where nothing is masked."""
    case = attention_cases.open_case(layout, 2, 4, 64, guard_tokens=GUARD, seed=7)
    with case.cache:
        case.fill(3, 40)
        case.empty(1)
        for queries in (1, 60):
            q = case.queries(queries)
            check(case, q, kernel, causal)
            out = attend(q, case.cache, 1, case.slots, case.lengths, causal=causal, kernel=kernel)
            assert not out[1].any()
            assert out[0, 0].any() == (queries == 1 or not causal)


@pytest.mark.parametrize("kernel", ["auto", *KERNELS])
@pytest.mark.parametrize("shape", [(0, 1, 4, 64), (3, 0, 4, 64)])
def test_no_rows_or_no_queries_are_an_empty_result(kernel, layout, shape):
    case = attention_cases.open_case(layout, 2, 4, 64, guard_tokens=GUARD)
    with case.cache:
        case.fill(3, 40)
        rows = slice(0, shape[0])
        q = torch.empty(shape)
        out = attend(q, case.cache, 1, case.slots[rows], case.lengths[rows], kernel=kernel)
        assert out.shape == shape


# --- dtypes that torch's attention does not take ---


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_auto_attends_in_float8_by_a_kernel_that_can(dtype, layout):
    case = attention_cases.open_case(layout, 2, 4, 64, dtype=dtype, guard_tokens=GUARD, seed=8)
    with case.cache:
        case.fill(2, 30)
        q = case.queries(3)
        out = attend(q, case.cache, case.layer, case.slots, case.lengths)
        # as near as the result's dtype: 3 bits of mantissa, or 2
        torch.testing.assert_close(out.double(), case.expected(q), atol=0.02, rtol=0.13)


@pytest.mark.parametrize("kernel", [name for name in KERNELS if name != "reference"])
def test_a_kernel_that_cannot_float8_says_so(kernel):
    case = attention_cases.open_case("layer", 2, 4, 64, dtype="float8_e4m3fn", guard_tokens=GUARD)
    with case.cache:
        case.fill(2, 30)
        with pytest.raises(UnsupportedError, match="float8_e4m3fn"):
            attend(case.queries(1), case.cache, 1, case.slots, case.lengths, kernel=kernel)


def test_what_torch_alone_knows_to_refuse_is_a_typed_error(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("No available kernel. Aborting execution.")

    monkeypatch.setattr("pyvattn.attention.sdpa_backends.scaled_dot_product_attention", refuse)
    case = attention_cases.open_case("layer", 2, 4, 64, guard_tokens=GUARD)
    with case.cache:
        case.fill(1, 10)
        with pytest.raises(UnsupportedError, match=r"4 query and 2 KV heads of 64.*kernel='auto'"):
            check(case, case.queries(1), "sdpa-flash")


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_matches_float64_to_its_rounding(kernel, dtype, layout):
    case = attention_cases.open_case(layout, 2, 8, 64, dtype=dtype, guard_tokens=GUARD, seed=2)
    with case.cache:
        case.fill(2, 100)
        check(case, case.queries(2), kernel, tolerance=2e-2)


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_work_on_the_emulated_cuda_driver(kernel, layout):
    case = attention_cases.open_case(
        layout, 2, 4, 64, driver="cumem-emulated", guard_tokens=GUARD, seed=3
    )
    with case.cache:
        case.fill(2, 100)
        check(case, case.queries(2), kernel)


def test_nan_behind_the_guard_is_really_there():
    """Or else the tests above would prove nothing."""
    case = attention_cases.open_case("layer", 2, 4, 64, guard_tokens=GUARD)
    with case.cache:
        case.fill(1, 100)
        k, _ = case.cache.layer(case.layer)
        row, length = k[case.slots[0]], case.lengths[0]
        assert not row[: length + GUARD].isnan().any()
        assert row[length + GUARD :].isnan().any()


# --- FlexAttention with functions of the user's ---


def test_flex_takes_a_score_function_on_token_positions():
    slopes = torch.tensor([0.5, 0.25, 0.125, 0.0625])

    def alibi(score, batch, head, query, key):
        return score + (key - query) * slopes[head]

    register(FlexKernel("alibi-test", score_mod=alibi))
    case = attention_cases.open_case("token", 2, 4, 64, guard_tokens=GUARD, seed=4)
    with case.cache:
        case.fill(3, 100)
        q = case.queries(2)
        out = attend(q, case.cache, case.layer, case.slots, case.lengths, kernel="alibi-test")
        for row, ((k, v), length) in enumerate(zip(case.kept, case.lengths, strict=True)):
            query = min(2, length) - 1  # the last one, which stands at length - 1
            for head in range(4):
                away = torch.arange(length) - (length - 1)
                scores = q[row, -1, head].double() @ k[:, head // 2].T / 8 + away * slopes[head]
                expected = scores.softmax(-1) @ v[:, head // 2]
                torch.testing.assert_close(
                    out[row, -1, head].double(), expected, atol=2e-5, rtol=2e-5
                )
            assert query >= 0


def test_a_mask_that_leaves_a_query_nothing_gives_zero():
    register(FlexKernel("nothing-test", mask_mod=lambda batch, head, query, key: query < 0))
    case = attention_cases.open_case("layer", 2, 4, 64, guard_tokens=GUARD, seed=6)
    with case.cache:
        case.fill(3, 100)
        out = attend(
            case.queries(3), case.cache, 1, case.slots, case.lengths, kernel="nothing-test"
        )
        assert not out.any()


def test_flex_takes_a_mask_function():
    def sliding(batch, head, query, key):
        return query - key < 10

    register(FlexKernel("sliding-test", mask_mod=sliding))
    case = attention_cases.open_case("layer", 2, 4, 64, guard_tokens=GUARD, seed=5)
    with case.cache:
        case.fill(3, 100)
        q = case.queries(1)
        out = attend(q, case.cache, case.layer, case.slots, case.lengths, kernel="sliding-test")
        case.kept = [(k[-10:], v[-10:]) for k, v in case.kept]
        case.lengths = [min(10, length) for length in case.lengths]
        torch.testing.assert_close(out.double(), case.expected(q), atol=2e-5, rtol=2e-5)


# --- the registry ---


def test_every_kernel_of_the_issue_is_listed_with_what_it_takes_and_why_it_is_not_here():
    infos = {info.name: info for info in kernel_infos()}
    listed = ["flash-attn-2", "flash-attn-3", "flash-attn-4", "flashinfer", "sdpa-cudnn"]
    listed.append("torch-varlen")
    for name in [*listed, *KERNELS]:
        assert infos[name].supports
    assert all(infos[name].unavailable is None for name in KERNELS)
    if not torch.cuda.is_available():
        assert all(infos[name].unavailable for name in listed)


@pytest.mark.parametrize(
    "kernel", ["flash-attn-2", "flash-attn-3", "torch-varlen", "flash-attn-4", "flashinfer"]
)
def test_a_cuda_kernel_asked_for_by_name_on_a_cpu_says_why_not(kernel):
    case = attention_cases.open_case("layer", 2, 4, 64, guard_tokens=GUARD)
    with case.cache:
        case.fill(1, 10)
        with pytest.raises(UnsupportedError, match=kernel):
            check(case, case.queries(1), kernel)


def test_consecutive_slots_are_found():
    assert list(consecutive([3, 4, 5, 1, 7, 8])) == [(0, 3), (3, 4), (4, 6)]
    assert list(consecutive([])) == []
    assert list(consecutive([2])) == [(0, 1)]
    assert list(consecutive([5, 4])) == [(0, 1), (1, 2)]
