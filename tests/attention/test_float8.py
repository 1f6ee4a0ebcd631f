# SPDX-License-Identifier: Apache-2.0
"""Float8 K and V with a scale for each layer and head: written, attended to, refused."""

# ruff: noqa: E402
from __future__ import annotations

import sys
from types import ModuleType

import pytest

torch = pytest.importorskip("torch")

from pyvattn import CacheSpec, KVCache, LayerGroup, errors
from pyvattn.attention import KVScales, append, attend, guard_needed, scales_of, set_scales
from pyvattn.attention.flash_attn3 import FlashAttention3Kernel
from pyvattn.attention.flash_attn3_paged import FlashAttention3PagedKernel
from pyvattn.attention.problem import Problem
from pyvattn.attention.registry import choose

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
LARGEST = {E4M3: 448.0, E5M2: 57344.0}
LAYERS, HEADS, DIM, SLOTS, TOKENS = 2, 2, 32, 3, 64
DEQUANTISING = ["sdpa", "sdpa-math", "sdpa-flash", "flex"]

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def open_cache(dtype="float8_e4m3fn", **options):
    shape = {"layers": LAYERS, "kv_heads": HEADS, "head_dim": DIM}
    shape |= {"max_slots": SLOTS, "max_tokens": TOKENS, "guard_tokens": 0}
    return KVCache(CacheSpec(**{**shape, **options}, dtype=dtype), device="cpu", memory="64MiB")


def uneven_scales(layers=LAYERS, heads=HEADS):
    """Another one for each layer, head and tensor, so that a mix-up shows."""
    values = [
        [0.01 * (1 + 7 * layer + 2 * head) for head in range(heads)] for layer in range(layers)
    ]
    return KVScales(
        [torch.tensor(each) for each in values], [3 * torch.tensor(each) for each in values]
    )


def represented(values, scale, dtype=E4M3):
    """What the cache must stand for, in float64 and with nothing of pyvattn: value by value."""
    out = torch.empty(values.shape, dtype=torch.float64)
    for head in range(values.shape[-2]):
        divided = values[..., head, :].float() / scale[head]
        largest = LARGEST[dtype]
        kept = torch.where(divided.abs() > largest, divided.sign() * largest, divided)
        out[..., head, :] = kept.to(dtype).double() * scale[head].double()
    return out


class Filled:
    """A cache with random tokens in every slot of layer 1, and what they stand for."""

    def __init__(self, dtype=E4M3, lengths=(40, 1, 17), **options):
        self.cache = open_cache(dtype, **options)
        self.scales = uneven_scales()
        set_scales(self.cache, self.scales)
        self.lengths = list(lengths)
        self.random = torch.Generator().manual_seed(3)
        self.k, self.v = [], []
        self.slots = []
        for length in lengths:
            slot = self.cache.admit(length)
            self.slots.append(slot.index)
            k, v = (torch.randn(length, HEADS, DIM, generator=self.random) for _ in "kv")
            at = torch.arange(length)
            append(self.cache, 1, torch.full_like(at, slot.index), at, k, v)
            self.k.append(represented(k, self.scales.layers[1].k, dtype))
            self.v.append(represented(v, self.scales.layers[1].v, dtype))

    def queries(self, *shape, dtype=torch.float32):
        return torch.randn(*shape, 2 * HEADS, DIM, generator=self.random).to(dtype)

    def expected(self, q, counts=None):
        """Causal attention in float64, one query and head at a time."""
        counts = counts or [q.shape[1]] * len(self.lengths)
        flat = q.double().reshape(-1, *q.shape[-2:])
        out, place = torch.zeros_like(flat), 0
        for k, v, length, count in zip(self.k, self.v, self.lengths, counts, strict=True):
            for number in range(count):
                seen = length - (count - 1 - number)
                for head in range(2 * HEADS if seen > 0 else 0):
                    scores = k[:seen, head // 2] @ flat[place, head] * DIM**-0.5
                    out[place, head] = scores.softmax(-1) @ v[:seen, head // 2]
                place += 1
        return out.view(q.shape)


# --- append ---


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
@pytest.mark.parametrize("given", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", ["layer", "token"])
def test_append_divides_by_the_scale_of_the_layer_and_head_and_rounds(dtype, given, layout):
    spec = CacheSpec(2, HEADS, DIM, dtype, max_slots=2, max_tokens=64, guard_tokens=0)
    with KVCache(spec, device="cpu", layout=layout, memory="64MiB") as cache:
        scales = uneven_scales()
        set_scales(cache, scales)
        slot = cache.admit(9)
        for layer in range(2):
            k, v = (torch.randn(9, HEADS, DIM).to(given) for _ in "kv")
            append(cache, layer, torch.tensor([slot.index]), torch.arange(9), k, v)
            for new, stored, scale in zip(
                (k, v), cache.layer(layer), scales.layers[layer], strict=True
            ):
                found = stored[slot.index, :9].double() * scale.double()[:, None]
                assert torch.equal(found, represented(new, scale, dtype))


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_what_is_too_large_becomes_the_largest_and_nan_stays(dtype):
    with open_cache(dtype) as cache:
        ones = [torch.ones(HEADS)] * LAYERS
        set_scales(cache, KVScales(ones, ones))
        slot = cache.admit(1)
        new = torch.zeros(1, HEADS, DIM)
        new[0, 0, :5] = torch.tensor([1e9, -1e9, torch.inf, -torch.inf, torch.nan])
        append(cache, 0, torch.tensor([slot.index]), torch.tensor([0]), new, new)
        for stored in cache.layer(0):
            found = stored[slot.index, 0, 0, :5].float().tolist()
            largest = LARGEST[dtype]
            assert found[:4] == [largest, -largest, largest, -largest]
            assert found[4] != found[4]


def test_tokens_in_float8_are_stored_as_they_are():
    with open_cache() as cache:
        set_scales(cache, uneven_scales())
        slot = cache.admit(4)
        new = torch.randn(4, HEADS, DIM).to(E4M3)
        append(cache, 0, torch.tensor([slot.index]), torch.arange(4), new, new)
        assert torch.equal(cache.layer(0)[0][slot.index, :4].float(), new.float())


# --- attend ---


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
@pytest.mark.parametrize("kernel", ["auto", *DEQUANTISING])
@pytest.mark.parametrize("queries", [1, 3])
def test_kernels_attend_to_what_the_elements_stand_for(kernel, queries, dtype):
    case = Filled(dtype)
    with case.cache:
        q = case.queries(3, queries)
        out = attend(q, case.cache, 1, case.slots, case.lengths, kernel=kernel)
        assert out.dtype == q.dtype
        torch.testing.assert_close(out.double(), case.expected(q), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("kernel", ["sdpa", "flex", "reference"])
def test_a_result_has_the_dtype_of_the_queries(kernel):
    case = Filled()
    with case.cache:
        q = case.queries(3, 2, dtype=torch.bfloat16)
        out = attend(q, case.cache, 1, case.slots, case.lengths, kernel=kernel)
        assert out.dtype == torch.bfloat16
        torch.testing.assert_close(out.double(), case.expected(q), atol=0.06, rtol=0.06)


def rounded_queries(q, counts, dtype=E4M3):
    """Queries as FlashAttention-3 gets them: one scale for a row's heads of a KV head."""
    out, place = q.double().clone(), 0
    rows = [q[i] for i in range(len(q))] if counts is None else q.split(counts)
    for row, one in enumerate(rows):
        for head in range(HEADS):
            part = one[:, 2 * head : 2 * head + 2]
            largest = part.abs().max() if part.numel() else torch.tensor(1.0)
            scale = largest / LARGEST[dtype]
            small = (part.float() / scale).to(dtype).double() * scale.double()
            where = row if counts is None else slice(place, place + len(one))
            out[where][..., 2 * head : 2 * head + 2, :] = small
        place += len(one)
    return out


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
@pytest.mark.parametrize("counts", [None, [2, 0, 5]])
def test_the_reference_rounds_the_queries_as_well(counts, dtype):
    case = Filled(dtype)
    with case.cache:
        q = case.queries(3, 4) if counts is None else case.queries(sum(counts))
        options = {"kernel": "reference", "query_counts": counts}
        out = attend(q, case.cache, 1, case.slots, case.lengths, **options)
        wanted = case.expected(rounded_queries(q, counts, dtype), counts)
        torch.testing.assert_close(out.double(), wanted, atol=1e-6, rtol=1e-6)
        # which is not what they were
        assert (out.double() - case.expected(q, counts)).abs().max() > 1e-4


def flash_attn_with_kvcache(q, k_cache, v_cache, *, cache_seqlens, cache_batch_idx, softmax_scale,
                            causal, q_descale, k_descale, v_descale, cu_seqlens_q=None,
                            max_seqlen_q=None, page_table=None):  # fmt: skip
    """What the package does in float8, in float64."""
    batch = len(cache_seqlens)
    if page_table is not None:
        k_cache, v_cache = (each[page_table].flatten(1, 2) for each in (k_cache, v_cache))
    for tensor in (q, k_cache, v_cache):
        assert tensor.dtype == E4M3
    for scale in (q_descale, k_descale, v_descale):
        assert scale.shape == (batch, HEADS)
        assert scale.dtype == torch.float32
    ends = cu_seqlens_q.tolist() if cu_seqlens_q is not None else None
    rows = [q[ends[i] : ends[i + 1]] if ends else q[i] for i in range(batch)]
    outs = []
    for row, (slot, length) in enumerate(zip(cache_batch_idx, cache_seqlens, strict=True)):
        k = k_cache[slot, :length].double() * k_descale[row].double()[:, None]
        v = v_cache[slot, :length].double() * v_descale[row].double()[:, None]
        asked = rows[row].double() * q_descale[row].double().repeat_interleave(2)[:, None]
        scores = torch.einsum("qhd,khd->hqk", asked, k.repeat_interleave(2, 1)) * softmax_scale
        hidden = torch.ones_like(scores, dtype=torch.bool).triu(int(length) - len(asked) + 1)
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        outs.append(torch.einsum("hqk,khd->qhd", weights, v.repeat_interleave(2, 1)))
    return (torch.cat(outs) if ends else torch.stack(outs)).bfloat16()


@pytest.mark.parametrize("kernel", [FlashAttention3Kernel(), FlashAttention3PagedKernel()])
@pytest.mark.parametrize("counts", [None, [2, 0, 5]])
def test_flash_attention_3_gets_float8_queries_and_all_scales(monkeypatch, counts, kernel):
    module = ModuleType("flash_attn_interface")
    module.flash_attn_with_kvcache = flash_attn_with_kvcache
    monkeypatch.setitem(sys.modules, module.__name__, module)
    case = Filled()
    with case.cache:
        q = case.queries(3, 1) if counts is None else case.queries(sum(counts))
        k, v = case.cache.layer(1)
        problem = Problem(q, k, v, case.slots, case.lengths, True, DIM**-0.5,
                          query_counts=counts, scales=case.scales.layers[1])  # fmt: skip
        problem.check()
        out = kernel.attend(problem)
        assert out.dtype == q.dtype
        wanted = case.expected(rounded_queries(q, counts), counts)
        torch.testing.assert_close(out.double(), wanted, atol=1e-2, rtol=1e-2)


def test_a_query_that_is_not_finite_leaves_the_others_of_its_row_alone():
    case = Filled(lengths=(40, 30, 20))
    with case.cache:
        q = case.queries(3, 2)
        clean = attend(q, case.cache, 1, case.slots, case.lengths, kernel="reference")
        q[:, 0, 0, 0] = torch.nan
        out = attend(q, case.cache, 1, case.slots, case.lengths, kernel="reference")
        torch.testing.assert_close(out[:, 1], clean[:, 1], atol=0.05, rtol=0.05)


# --- what is refused ---


@pytest.mark.parametrize("kernel", ["torch-varlen", "flash-attn-2", "flash-attn-4", "flashinfer"])
def test_a_kernel_without_float8_says_so_by_name(monkeypatch, kernel):
    from pyvattn.attention.registry import _KERNELS

    monkeypatch.setattr(_KERNELS[kernel], "unavailable", lambda: None)
    case = Filled()
    with case.cache, pytest.raises(errors.UnsupportedError, match=f"{kernel}.*float8 K and V"):
        attend(case.queries(3, 1), case.cache, 1, case.slots, case.lengths, kernel=kernel)


def flash_3_on_hopper(monkeypatch, **flags):
    module = ModuleType("flash_attn_interface")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr("pyvattn.attention.optional.why_no_device", lambda *_: None)
    monkeypatch.setattr("pyvattn.attention.flash_kvcache.why_not_flash", lambda *_: None)
    monkeypatch.setattr("pyvattn.attention.flash_attn3_build.left_out", lambda: frozenset(flags))


def test_flash_attention_3_reads_longer_tiles_of_float8(monkeypatch):
    flash_3_on_hopper(monkeypatch)
    kernel = FlashAttention3Kernel()
    case = Filled()
    with case.cache:
        k, v = case.cache.layer(1)
        q = case.queries(3, 1)
        problem = Problem(q, k, v, case.slots, case.lengths, True, 1.0, scales=case.scales.of(1))
        monkeypatch.setattr(type(kernel), "unavailable", lambda _: None)
        assert choose("flash-attn-3", problem, 224).name == "flash-attn-3"
        with pytest.raises(errors.UnsupportedError, match=r"224 tokens.*guards 192"):
            choose("flash-attn-3", problem, 192)
        assert guard_needed("float8_e4m3fn") == 224
        assert guard_needed() == 192


def test_flash_attention_3_names_what_float8_it_has_not(monkeypatch):
    flash_3_on_hopper(monkeypatch, FP8=True)
    for dtype, reason in ((E4M3, "made without float8"), (E5M2, "takes float8_e4m3fn")):
        case = Filled(dtype)
        with case.cache:
            q, (k, v) = case.queries(3, 1), case.cache.layer(1)
            problem = Problem(q, k, v, case.slots, case.lengths, True, 1.0,
                              scales=case.scales.of(1))  # fmt: skip
            assert reason in FlashAttention3Kernel().unsupported(problem)
        flash_3_on_hopper(monkeypatch)


def test_a_cache_without_scales_asks_for_them():
    with open_cache() as cache:
        slot = cache.admit(1)
        new, at = torch.zeros(1, HEADS, DIM), torch.tensor([0])
        with pytest.raises(errors.TensorError, match=r"without scales.*set_scales\(\)"):
            append(cache, 0, torch.tensor([slot.index]), at, new, new)
        with pytest.raises(errors.TensorError, match=r"give the cache scales with set_scales\(\)"):
            attend(torch.zeros(1, 1, 4, DIM), cache, 0, [slot.index], [1])


def test_queries_in_float8_have_no_scale_that_anyone_knows():
    case = Filled()
    with case.cache, pytest.raises(errors.TensorError, match=r"q is torch.float8_e4m3fn"):
        attend(case.queries(3, 1).to(E4M3), case.cache, 1, case.slots, case.lengths)


def bad_scales():
    one, two, three = (torch.ones(heads) for heads in (1, 2, 3))
    yield [two], [two, two], "scales of 1 layers for K and 2 for V"
    yield [], [], "scales of 0 layers"
    yield [two.double()], [two], "torch.float64: use torch.float32"
    yield [two[None]], [two], r"use a tensor of \[kv_heads\]"
    yield [two], [[1.0, 1.0]], r"use a tensor of \[kv_heads\]"
    yield [two], [three], "2 scales for K on cpu and 3 for V"
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        yield [two], [torch.tensor([1.0, wrong])], "positive finite"
    yield [one], [one * 0], "positive finite"


@pytest.mark.parametrize(("k", "v", "message"), list(bad_scales()))
def test_scales_that_cannot_be(k, v, message):
    with pytest.raises(errors.TensorError, match=message):
        KVScales(k, v)


def test_scales_must_fit_the_cache():
    two, three = torch.ones(2), torch.ones(3)
    with open_cache() as cache:
        with pytest.raises(errors.TensorError, match="scales of 1 layers for a cache of 2"):
            set_scales(cache, KVScales([two], [two]))
        with pytest.raises(errors.TensorError, match="layer 1 has 2 KV heads and scales of 3"):
            set_scales(cache, KVScales([two, three], [two, three]))
        with pytest.raises(errors.TensorError, match="use a KVScales"):
            set_scales(cache, {"k": 1.0})
        assert scales_of(cache) is None
    with open_cache("bfloat16") as cache, pytest.raises(errors.UnsupportedError, match="bfloat16"):
        set_scales(cache, uneven_scales())


def test_layers_of_several_shapes_have_scales_of_their_own_number():
    groups = [LayerGroup([0], 2, DIM), LayerGroup([1], 4, DIM)]
    shape = {"layers": 0, "kv_heads": 0, "head_dim": 0}
    with open_cache(groups=groups, **shape) as cache:
        set_scales(cache, KVScales.to_calibrate(cache))
        assert [len(layer.k) for layer in scales_of(cache).layers] == [2, 4]


# --- calibration and files ---


def test_a_layer_whose_values_do_not_fit_keeps_both_its_scales():
    with open_cache() as cache:
        scales = KVScales.to_calibrate(cache)
        good, bad = torch.ones(7, HEADS, DIM), torch.ones(7, HEADS + 1, DIM)
        with pytest.raises(errors.TensorError, match="KV heads"):
            scales.calibrate(0, good, bad, torch.float8_e4m3fn)
        assert scales.is_pending(0)
        assert all(torch.equal(scale, torch.ones(HEADS)) for scale in scales.of(0))


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_calibrated_scales_leave_room_for_values_twice_as_large(dtype):
    with open_cache(dtype) as cache:
        scales = KVScales.to_calibrate(cache)
        kept = scales.of(0).k
        k, v = (torch.randn(5, 7, HEADS, DIM) for _ in "kv")
        k[..., 0, :] *= 100
        k[0, 0, 0, 0] = torch.inf
        v[..., 1, :] = 0
        assert scales.is_pending(0)
        scales.calibrate(0, k, v, dtype)
        assert [scales.is_pending(layer) for layer in range(2)] == [False, True]
        for new, scale in zip((k, v), scales.of(0), strict=True):
            for head in range(HEADS):
                values = new[..., head, :]
                largest = values[values.isfinite()].abs().max().item()
                wanted = 2 * largest / LARGEST[dtype] if largest else 1.0
                assert scale[head].item() == pytest.approx(wanted)
        # A captured graph reads them where they were.
        assert scales.of(0).k.data_ptr() == kept.data_ptr()


def test_scales_come_back_from_a_file_as_they_were(tmp_path):
    scales = uneven_scales()
    scales.save(tmp_path / "scales.json")
    again = KVScales.load(tmp_path / "scales.json", "cpu")
    for one, other in zip(scales.layers, again.layers, strict=True):
        assert torch.equal(one.k, other.k)
        assert torch.equal(one.v, other.v)


@pytest.mark.parametrize(
    "content",
    [None, "", "[]", '{"format": "other"}', '{"format": "pyvattn-kv-scales-1", "k": [[1]]}',
     '{"format": "pyvattn-kv-scales-1", "k": [[1]], "v": [["x"]]}',
     '{"format": "pyvattn-kv-scales-1", "k": [[0]], "v": [[1]]}'],
)  # fmt: skip
def test_a_file_that_holds_no_scales_is_named(tmp_path, content):
    path = tmp_path / "scales.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(errors.CalibrationError, match=r"scales\.json.*KVScales\.save"):
        KVScales.load(path, "cpu")


# --- sizes ---


def test_a_float8_token_is_counted_by_the_byte():
    small, large = (
        CacheSpec(4, HEADS, DIM, dtype, max_slots=2, max_tokens=64) for dtype in (E4M3, "bfloat16")
    )
    assert small.bytes_at(10) == 4 * 2 * HEADS * DIM * 10
    assert large.bytes_at(10) == 2 * small.bytes_at(10)
