# SPDX-License-Identifier: Apache-2.0
"""Windows, starts, softcaps, slopes, sinks, packed queries and the log-sum-exp, on the CPU."""

# ruff: noqa: E402
from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import attention_cases
from feature_cases import Asked, expected

from pyvattn import CacheSpec, KVCache, LayerGroup
from pyvattn.attention import Feature, Problem, append, attend, flex, kernel_infos, sdpa
from pyvattn.attention.features import named
from pyvattn.attention.registry import _KERNELS
from pyvattn.attention.rows import Row
from pyvattn.errors import ConfigError, TensorError, UnsupportedError

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

GUARD = 64
KERNELS = ["reference", "sdpa", "sdpa-math", "sdpa-flash", "flex"]


def open_case(layout, features, **options):
    """Open a case whose V is of another width where that is among ``features``."""
    width = 24 if Feature.V_WIDTH in features else 0
    options |= {"guard_tokens": GUARD, "v_head_dim": width}
    return attention_cases.open_case(layout, 2, 4, 32, **options)


def cases():
    """Every feature of every kernel alone, and all of them together."""
    for kernel in KERNELS:
        has = _KERNELS[kernel].features
        for feature in sorted(has, key=lambda feature: feature.name):
            yield pytest.param(kernel, frozenset((feature,)), id=f"{kernel}-{feature.name}")
        if len(has) > 1:
            yield pytest.param(kernel, has, id=f"{kernel}-all")


@pytest.mark.parametrize(("kernel", "features"), list(cases()))
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
@pytest.mark.parametrize("seed", range(3))
def test_features_give_what_they_mean(kernel, features, causal, seed):
    layout = ("layer", "token")[seed % 2]
    case = open_case(layout, features, seed=seed)
    with case.cache:
        case.fill(4, 12)
        asked = Asked(causal, features, seed)
        q = asked.draw(case, 12)
        call = {"causal": causal, "scale": asked.scale, "kernel": kernel, **asked.options}
        place = (case.cache, case.layer, case.slots, case.lengths)
        out, lse = expected(case, q, asked)
        torch.testing.assert_close(attend(q, *place, **call).double(), out, atol=2e-5, rtol=2e-5)
        if Feature.LSE in features:
            again, sums = attend(q, *place, return_lse=True, **call)
            assert sums.dtype == torch.float32
            torch.testing.assert_close(again.double(), out, atol=2e-5, rtol=2e-5)
            torch.testing.assert_close(sums.double(), lse, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("features", [*({each} for each in Feature), set(Feature)], ids=named)
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
def test_flex_gives_the_same_in_parts(monkeypatch, features, causal):
    calls = []
    plain = flex.flex_attention

    def counted(q, k, *arguments, **options):
        calls.append(k.shape[2])
        return plain(q, k, *arguments, **options)

    monkeypatch.setattr(flex, "flex_attention", counted)
    monkeypatch.setattr(flex, "_BLOCK", 4)
    monkeypatch.setattr(flex, "_MOST_ELEMENTS", 0)
    test_features_give_what_they_mean("flex", frozenset(features), causal, seed=2)
    assert 0 < max(calls) <= 4


@pytest.mark.parametrize(
    ("tokens", "stride", "parts"), [(32767, 65536, 2), (32640, 65536, 1), (60000, 65536, 2),
                                    (131072, 65536, 5), (131072, 2048, 1)]
)  # fmt: skip
def test_no_part_of_a_row_has_elements_that_flex_cannot_count_to(tokens, stride, parts):
    k = torch.empty_strided((tokens, 8, 128), (stride, 128, 1), device="meta")
    row = Row(0, torch.empty(1, 8, 128, device="meta"), k, k, 0)
    cut = flex._parts(row)
    assert len(cut) == parts
    assert [part.start for part in cut] == [0, *(part.stop for part in cut)][:-1]
    assert cut[-1].stop == tokens
    for part in cut:
        whole_blocks = -(-(part.stop - part.start) // 128) * 128
        assert (whole_blocks - 1) * stride + 8 * 128 <= 2**31


@pytest.mark.parametrize("window", [(0, 1), (-1, 2), (3, 0)])
def test_torch_gets_no_query_that_sees_nothing(monkeypatch, window):
    """What it gives for one differs: zeros on a CPU, old values from some kernels on a GPU."""

    def attends(*tensors, attn_mask, **options):
        assert attn_mask.any(-1).all()
        return whole(*tensors, attn_mask=attn_mask, **options)

    whole = sdpa.scaled_dot_product_attention
    monkeypatch.setattr(sdpa, "scaled_dot_product_attention", attends)
    case = attention_cases.open_case("layer", 2, 4, 32, guard_tokens=GUARD)
    with case.cache:
        case.fill(4, 12)
        q = case.queries(20)
        asked = Asked(False, frozenset(), 0, options={"window_size": window})
        place = (case.cache, case.layer, case.slots, case.lengths)
        call = {"causal": False, "scale": asked.scale, **asked.options}
        out = attend(q, *place, kernel="sdpa", **call)
        wanted, _ = expected(case, q, asked)
        torch.testing.assert_close(out.double(), wanted, atol=2e-5, rtol=2e-5)


def test_flex_is_not_compiled_again_for_another_softcap(monkeypatch):
    """Nor does it get the softcap as a float, which torch cannot compile into it on a GPU."""
    graphs = []

    def counted(graph, inputs):
        graphs.append([one for one in inputs if getattr(one, "dtype", None) == torch.float64])
        return graph.forward

    torch.compiler.reset()
    compiled = torch.compile(flex.flex_attention, dynamic=True, backend=counted)
    monkeypatch.setattr(flex, "flex_attention", compiled)
    case = attention_cases.open_case("layer", 2, 4, 32, guard_tokens=GUARD)
    with case.cache:
        case.fill(1, 12)
        q = case.queries(3)
        place = (case.cache, case.layer, case.slots, case.lengths)
        for softcap in (0.7, 1.3, 2.1):
            asked = Asked(True, frozenset(), 0, options={"softcap": softcap})
            out = attend(q, *place, kernel="flex", scale=asked.scale, softcap=softcap)
            wanted, _ = expected(case, q, asked)
            torch.testing.assert_close(out.double(), wanted, atol=2e-5, rtol=2e-5)
    assert len(graphs) == 1
    assert len(graphs[0]) <= 1, "another float than the scale"


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_kernel_refuses_by_name_what_it_does_not_do(kernel):
    for feature in frozenset(Feature) - _KERNELS[kernel].features:
        case = open_case("layer", {feature})
        with case.cache:
            case.fill(2, 24)
            asked = Asked(True, frozenset((feature,)), seed=0)
            q = asked.draw(case, 4)
            lse = {"return_lse": True} if feature is Feature.LSE else {}
            call = {"kernel": kernel, **asked.options, **lse}
            with pytest.raises(UnsupportedError, match=f"{kernel}.*does not do {feature.value}"):
                attend(q, case.cache, case.layer, case.slots, case.lengths, **call)


def test_auto_takes_a_kernel_that_does_it_all():
    case = open_case("layer", frozenset(Feature))
    with case.cache:
        case.fill(3, 24)
        asked = Asked(True, frozenset(Feature), seed=5)
        q = asked.draw(case, 8)
        call = {"scale": asked.scale, "return_lse": True, **asked.options}
        out, lse = attend(q, case.cache, case.layer, case.slots, case.lengths, **call)
        wanted, sums = expected(case, q, asked)
        torch.testing.assert_close(out.double(), wanted, atol=2e-5, rtol=2e-5)
        torch.testing.assert_close(lse.double(), sums, atol=2e-5, rtol=2e-5)


def test_two_halves_of_a_row_join_by_their_log_sum_exps():
    """What engines split long rows for: the parts weigh as their sums do."""
    case = attention_cases.open_case("layer", 2, 4, 32, guard_tokens=GUARD, seed=3)
    with case.cache:
        case.fill(1, 40)
        length = case.lengths[0]
        q = case.queries(1)
        place = (q, case.cache, case.layer, case.slots)
        front, front_sum = attend(*place, [length // 2], causal=False, return_lse=True)
        back, back_sum = attend(*place, [length], starts=[length // 2], return_lse=True)
        share = torch.sigmoid(front_sum - back_sum).transpose(1, 2)[..., None]
        joined = share * front + (1 - share) * back
        torch.testing.assert_close(joined, attend(*place, [length]), atol=2e-5, rtol=2e-5)


def test_nothing_before_a_start_is_read():
    case = attention_cases.open_case("layer", 2, 4, 32, guard_tokens=GUARD, seed=4)
    with case.cache:
        case.fill(3, 24)
        starts = [length // 2 for length in case.lengths]
        place = (case.cache, case.layer, case.slots, case.lengths)
        q = case.queries(1)
        before = {k: attend(q, *place, starts=starts, kernel=k) for k in KERNELS}
        for tensor in case.cache.layer(case.layer):
            for slot, start in zip(case.slots, starts, strict=True):
                tensor[slot, :start] = float("nan")
        for kernel, out in before.items():
            assert torch.equal(attend(q, *place, starts=starts, kernel=kernel), out)


def test_tensors_do_as_well_as_lists():
    case = attention_cases.open_case("layer", 2, 4, 32, guard_tokens=GUARD, seed=5)
    with case.cache:
        case.fill(3, 24)
        q = case.queries(4).flatten(0, 1)[:7]
        place = (q, case.cache, case.layer, case.slots, case.lengths)
        numbers = {"starts": [1, 0, 2], "query_counts": [4, 0, 3]}
        tensors = {name: torch.tensor(values) for name, values in numbers.items()}
        assert torch.equal(attend(*place, **numbers), attend(*place, **tensors))


BAD = [
    ({"window_size": (1,)}, ConfigError, r"window_size \(1,\): use \(left, right\)"),
    ({"window_size": (-2, 0)}, ConfigError, "window_size"),
    ({"window_size": 128}, ConfigError, "window_size 128"),
    ({"window_size": (1.5, 0)}, ConfigError, "window_size"),
    ({"softcap": -1.0}, ConfigError, "softcap -1.0"),
    ({"softcap": float("inf")}, ConfigError, "softcap inf"),
    ({"softcap": "x"}, ConfigError, "softcap 'x'"),
    ({"starts": [0]}, TensorError, "1 starts"),
    ({"starts": [0, 301]}, TensorError, "start 301 is outside 0 to 300"),
    ({"starts": [0, 0.5]}, TensorError, "starts"),
    ({"alibi_slopes": torch.zeros(3)}, TensorError, r"alibi_slopes .*\[4\] or \[2, 4\]"),
    ({"alibi_slopes": torch.zeros(4).half()}, TensorError, "alibi_slopes is torch.float16"),
    ({"sinks": torch.zeros(2, 4)}, TensorError, r"sinks .*\[4\]"),
    ({"sinks": [0.0] * 4}, TensorError, "sinks"),
    ({"query_counts": [1, 1]}, TensorError, r"\[total, q_heads, head_dim\]"),
    ({"return_lse": 1}, ConfigError, "return_lse"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_what_cannot_be_is_refused_by_name(call, error, message):
    case = attention_cases.open_case("layer", 2, 4, 32, guard_tokens=GUARD)
    with case.cache:
        case.fill(2, 24)
        with pytest.raises(error, match=message) as caught:
            attend(case.queries(1), case.cache, case.layer, case.slots, case.lengths, **call)
        assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("counts", "message"),
    [([1, 1], "query_counts: 2 in all, q has 3"), ([4, -1], "query_count -1"), ([3], "2 rows")],
)
def test_every_packed_query_is_counted_once(counts, message):
    case = attention_cases.open_case("layer", 2, 4, 32, guard_tokens=GUARD)
    with case.cache:
        case.fill(2, 24)
        q = torch.zeros(3, 4, 32)
        place = (case.cache, case.layer, case.slots, case.lengths)
        with pytest.raises(TensorError, match=message):
            attend(q, *place, query_counts=counts)


def test_the_most_queries_of_a_row_bound_what_a_kernel_launches():
    """Counts on a device are not waited for: their sum is a bound as well."""
    q, cached = torch.zeros(7, 4, 32), torch.zeros(3, 8, 2, 32)
    rows = ([0, 1, 2], [8, 8, 8], True, 1.0)
    counts = [4, 0, 3]
    assert Problem(q, cached, cached, *rows, query_counts=counts).most_queries == 4
    assert Problem(q, cached, cached, *rows, query_counts=torch.tensor(counts)).most_queries == 7
    assert Problem(q[None], cached, cached, *rows).most_queries == 7


def test_no_queries_at_all_are_an_empty_result():
    case = attention_cases.open_case("layer", 2, 4, 32, guard_tokens=GUARD)
    with case.cache:
        case.fill(2, 24)
        place = (case.cache, case.layer, case.slots, case.lengths)
        out, lse = attend(torch.zeros(0, 4, 32), *place, query_counts=[0, 0], return_lse=True)
        assert (out.shape, lse.shape) == ((0, 4, 32), (4, 0))


def test_features_are_named_in_one_order():
    assert named(frozenset((Feature.LSE, Feature.WINDOW))) == "a window, the log-sum-exp"
    assert {info.name for info in kernel_infos()} == set(_KERNELS)


def test_a_layer_that_reads_anothers_is_attended_to_as_that_one_is():
    groups = [
        LayerGroup([0], kv_heads=2, head_dim=32, window=8),
        LayerGroup([1], kv_heads=2, head_dim=32, v_head_dim=16),
    ]
    spec = CacheSpec(
        groups=groups, shared={2: 0, 3: 1}, dtype="float32", max_slots=2, max_tokens=64
    )
    with KVCache(spec, device="cpu", memory="64MiB") as cache:
        slot = cache.admit(20)
        row, places = torch.tensor([slot.index]), torch.arange(20)
        append(cache, 0, row, places, *torch.randn(2, 20, 2, 32))
        append(cache, 1, row, places, torch.randn(20, 2, 32), torch.randn(20, 2, 16))
        q = torch.randn(1, 3, 4, 32)
        for reader, source in ((2, 0), (-2, 0), (3, 1), (-1, 1)):
            outs = [attend(q, cache, one, [slot.index], [20]) for one in (reader, source)]
            assert torch.equal(*outs)
            assert outs[0].shape[-1] == (32, 16)[source]
            with pytest.raises(UnsupportedError, match=f"layer {source} and keeps none"):
                append(cache, reader, row, places, *torch.randn(2, 20, 2, 32))
        assert torch.equal(cache.layer(2)[0], cache.layer(0)[0])


def test_latent_vectors_beside_heads_are_refused_by_name():
    groups = [
        LayerGroup([0], kv_heads=1, head_dim=24, latent_dim=16),
        LayerGroup([1], kv_heads=1, head_dim=24),
    ]
    spec = CacheSpec(groups=groups, dtype="float32", max_slots=2, max_tokens=64)
    with KVCache(spec, device="cpu", memory="64MiB") as cache:
        slot = cache.admit(4)
        k, v = cache.layer(0)
        k[slot.index, :4] = torch.randn(4, 1, 24)
        assert torch.equal(v[slot.index, :4], k[slot.index, :4, :, :16])
        q = torch.randn(1, 1, 4, 24)
        with pytest.raises(UnsupportedError, match="layer 0 of this cache keeps latent vectors"):
            attend(q, cache, 0, [slot.index], [4])
        assert attend(q, cache, 1, [slot.index], [4]).shape == q.shape
