# SPDX-License-Identifier: Apache-2.0
"""pyvattn.attention on the host driver, against attention written out in float64 here."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="pyvattn.attention needs torch")

from pyvattn import CacheSpec, KVCache, errors  # noqa: E402
from pyvattn.attention import Kernel, append, attend, guard_needed, kernel_infos, register  # noqa: E402

# Small tensors gain nothing from threads, and test workers share the cores.
torch.set_num_threads(1)

KERNELS = ["auto", "sdpa", "reference"]
LENGTHS = (1, 37, 64, 250)

# As modules are imported, before any test registers kernels of its own.
SHIPPED = {info.name for info in kernel_infos()}


def make_spec(q_group=4, head_dim=64, dtype="float32", **options):
    options = {"layers": 2, "kv_heads": 2, "max_slots": 6, "max_tokens": 300, **options}
    return CacheSpec(head_dim=head_dim, dtype=dtype, **options)


def open_kv(spec, layout="layer"):
    return KVCache(spec, device="cpu", driver="host", layout=layout, memory="256MiB")


def randn(*shape, dtype=torch.float32):
    return torch.randn(*shape).to(dtype)


def fill(kv, lengths, layer=1):
    """Write random tokens into a slot for each length; returns slots and the K and V written."""
    slots = [kv.acquire(tokens=length) for length in lengths]
    kv.step(dict(zip(slots, lengths, strict=True)))
    spec, dtype = kv.spec, getattr(torch, kv.spec.dtype)
    written = []
    for slot, length in zip(slots, lengths, strict=True):
        k, v = (randn(length, spec.kv_heads, spec.head_dim, dtype=dtype) for _ in range(2))
        append(kv, layer, torch.tensor([int(slot)]), torch.arange(length), k, v)
        written.append((k, v))
    return slots, written


def expected_row(q, k, v, length, causal, scale):
    """One row by the definition: query i of Q stands at token length - Q + i."""
    queries, heads, _ = q.shape
    group = heads // k.shape[1]
    out = torch.zeros(q.shape, dtype=torch.float64)
    for i in range(queries):
        position = length - queries + i
        seen = position + 1 if causal else length
        if seen <= 0:
            continue
        for head in range(heads):
            keys, values = (t[:seen, head // group].double() for t in (k, v))
            weights = torch.softmax(keys @ q[i, head].double() * scale, dim=0)
            out[i, head] = weights @ values
    return out


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("layout", ["layer", "token"])
@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize("queries", [1, 5, 64])
@pytest.mark.parametrize("causal", [True, False])
def test_attend_is_attention(kernel, layout, group, queries, causal):
    """Decode, a mixed batch with rows shorter than the queries, and a whole prefill."""
    torch.manual_seed(queries)
    with open_kv(make_spec(), layout) as kv:
        slots, written = fill(kv, LENGTHS)
        q = torch.randn(len(LENGTHS), queries, 2 * group, 64)
        out = attend(q, kv, 1, slots, LENGTHS, causal=causal, kernel=kernel)
        assert out.shape == q.shape
        for row, ((k, v), length) in enumerate(zip(written, LENGTHS, strict=True)):
            expected = expected_row(q[row], k, v, length, causal, 64**-0.5)
            torch.testing.assert_close(out[row].double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 192, 256])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 4e-3), ("bfloat16", 3e-2)])
def test_head_dims_and_dtypes(head_dim, dtype, tolerance):
    torch.manual_seed(head_dim)
    with open_kv(make_spec(head_dim=head_dim, dtype=dtype)) as kv:
        slots, written = fill(kv, (40,))
        q = randn(1, 7, 8, head_dim, dtype=getattr(torch, dtype))
        out = attend(q, kv, 1, slots, (40,), scale=0.2)
        k, v = written[0]
        expected = expected_row(q[0], k, v, 40, True, 0.2)
        torch.testing.assert_close(out[0].double(), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("kernel", KERNELS)
def test_nothing_past_a_length_is_read(kernel):
    """Tokens past the length that are backed hold NaN, and other slots do."""
    with open_kv(make_spec()) as kv:
        slots, _ = fill(kv, (100, 100))
        for tensor in kv.layer(1):
            tensor[int(slots[0]), 41:100] = math.nan
            tensor[int(slots[1]), :100] = math.nan
        for queries in (1, 3, 41):
            q = torch.randn(1, queries, 8, 64)
            assert attend(q, kv, 1, slots[:1], (41,), kernel=kernel).isfinite().all()


def test_slots_and_lengths_may_be_tensors():
    with open_kv(make_spec()) as kv:
        slots, _ = fill(kv, LENGTHS)
        q = torch.randn(len(LENGTHS), 1, 8, 64)
        ints = attend(q, kv, 1, slots, LENGTHS)
        numbers = torch.tensor([int(slot) for slot in slots])
        assert torch.equal(attend(q, kv, 1, numbers, torch.tensor(LENGTHS)), ints)


def test_an_empty_row_is_zero():
    with open_kv(make_spec()) as kv:
        slots, _ = fill(kv, (5, 5))
        out = attend(torch.randn(2, 1, 8, 64), kv, 1, slots, (0, 5))
        assert not out[0].any()
        assert out[1].any()


@pytest.mark.parametrize("layout", ["layer", "token"])
def test_append_writes_a_rectangle_or_single_tokens(layout):
    with open_kv(make_spec(), layout) as kv:
        slots = [kv.acquire() for _ in range(3)]
        kv.step(dict.fromkeys(slots, 10))
        rows = torch.tensor([int(slot) for slot in slots])
        k, v = torch.randn(2, 3, 4, 2, 64)
        append(kv, 0, rows[:, None], torch.tensor([[0], [2], [6]]) + torch.arange(4), k, v)
        extra_k, extra_v = torch.randn(2, 2, 2, 64)
        append(kv, 0, rows[[2, 0]], torch.tensor([1, 9]), extra_k, extra_v)

        for stored, block, extra in zip(kv.layer(0), (k, v), (extra_k, extra_v), strict=True):
            expected = torch.zeros(3, 10, 2, 64)
            for row, start in enumerate((0, 2, 6)):
                expected[row, start : start + 4] = block[row]
            expected[2, 1], expected[0, 9] = extra
            assert torch.equal(stored[rows, :10], expected)
        assert not any(tensor[rows, :10].any() for tensor in kv.layer(1))


def bad_calls():
    good = torch.zeros(2, 1, 8, 64)
    yield "three dims", good[0], {}, errors.TensorError, r"\[batch, queries, q_heads, head_dim\]"
    yield "one slot short", good, {"slots": (0,)}, errors.TensorError, "1 slots"
    yield "head dim", good[..., :32], {}, errors.TensorError, "8 heads of 32"
    yield "heads", good[:, :, :3], {}, errors.TensorError, "3 heads of 64"
    yield "dtype", good.half(), {}, errors.TensorError, "float16"
    yield "length", good, {"lengths": (1, 301)}, errors.TensorError, "length 301"
    yield "negative", good, {"lengths": (-1, 3)}, errors.TensorError, "length -1"
    yield "slot", good, {"slots": (0, 6)}, errors.TensorError, "slot 6 is outside 0 to 5"
    yield "last slot", good, {"slots": (0, -1)}, errors.TensorError, "slot -1"
    yield "kernel", good, {"kernel": "fa9"}, errors.ConfigError, "'fa9' is unknown: use one of auto"


@pytest.mark.parametrize(
    ("q", "change", "error", "message"),
    [pytest.param(*call, id=name) for name, *call in bad_calls()],
)
def test_calls_that_cannot_be(q, change, error, message):
    with open_kv(make_spec()) as kv:
        arguments = {"slots": (0, 1), "lengths": (1, 1), **change}
        with pytest.raises(error, match=message):
            attend(q, kv, 0, **arguments)


def test_append_refuses_what_does_not_fit():
    with open_kv(make_spec()) as kv:
        kv.step({kv.acquire(): 4})
        where = torch.tensor([0]), torch.arange(4)
        good = torch.zeros(4, 2, 64)
        with pytest.raises(errors.TensorError, match=r"\[4, 3, 64\]"):
            append(kv, 0, *where, good, torch.zeros(4, 3, 64))
        with pytest.raises(errors.TensorError, match="bfloat16"):
            append(kv, 0, *where, good, good.bfloat16())
        assert not any(tensor[0, :4].any() for tensor in kv.layer(0))


def test_a_latent_cache_has_no_heads_to_attend_to():
    spec = CacheSpec.mla(layers=1, latent_dim=32, rope_dim=8, max_slots=1, max_tokens=64)
    with open_kv(spec) as kv, pytest.raises(errors.UnsupportedError, match="latent vectors"):
        attend(torch.zeros(1, 1, 8, 40), kv, 0, (0,), (1,))


def test_float8_is_left_to_kernels_that_know_it():
    spec = make_spec(dtype="float8_e4m3fn")
    with open_kv(spec) as kv:
        q = torch.zeros(1, 1, 8, 64).to(torch.float8_e4m3fn)
        with pytest.raises(errors.UnsupportedError, match="use kernel='auto'"):
            attend(q, kv, 0, (0,), (1,), kernel="sdpa")


class Constant(Kernel):
    """Answers with a number, where it is available."""

    supports = "anything"

    def __init__(self, name, unavailable=None, unsupported=None, guard_tokens=0):
        self.name = name
        self.guard_tokens = guard_tokens
        self._unavailable, self._unsupported = unavailable, unsupported

    def unavailable(self):
        return self._unavailable

    def unsupported(self, problem):
        return self._unsupported

    def attend(self, problem):
        return torch.full_like(problem.q, 7)


@pytest.fixture
def registry(monkeypatch):
    """The registered kernels, as they were again after the test."""
    from pyvattn.attention import registry

    monkeypatch.setattr(registry, "_KERNELS", dict(registry._KERNELS))


@pytest.mark.usefixtures("registry")
def test_auto_takes_the_first_kernel_that_can():
    register(Constant("absent", unavailable="needs a GPU"), before="sdpa")
    register(Constant("unfit", unsupported="too small"), before="sdpa")
    register(Constant("last"))
    infos = {info.name: info for info in kernel_infos()}
    names = list(infos)
    sdpa = names.index("sdpa")
    assert names[sdpa - 2 : sdpa] == ["absent", "unfit"]
    assert names[-1] == "last"
    assert infos["absent"].unavailable == "needs a GPU"
    with open_kv(make_spec()) as kv:
        slots, _ = fill(kv, (3,))
        q = torch.randn(1, 1, 8, 64)
        assert torch.equal(
            attend(q, kv, 1, slots, (3,)), attend(q, kv, 1, slots, (3,), kernel="sdpa")
        )
        register(Constant("first"), before="absent")
        assert (attend(q, kv, 1, slots, (3,)) == 7).all()
        with pytest.raises(errors.UnsupportedError, match="needs a GPU"):
            attend(q, kv, 1, slots, (3,), kernel="absent")


@pytest.mark.usefixtures("registry")
def test_a_kernel_that_reads_further_than_the_cache_guards_is_not_used():
    register(Constant("far", guard_tokens=64), before="sdpa")
    for guard, taken in ((64, True), (63, False), (0, False)):
        with open_kv(make_spec(guard_tokens=guard)) as kv:
            slots, _ = fill(kv, (3,))
            q = torch.randn(1, 1, 8, 64)
            assert (attend(q, kv, 1, slots, (3,)) == 7).all() == taken
            if not taken:
                with pytest.raises(errors.UnsupportedError, match=r"guard_tokens=64\)"):
                    attend(q, kv, 1, slots, (3,), kernel="far")


def test_the_default_guard_is_enough_for_every_kernel_and_for_those_nobody_measured():
    default = make_spec().guard_tokens
    assert Kernel.guard_tokens == default
    assert all(info.guard_tokens <= default for info in kernel_infos())


def test_no_kernel_declares_less_guard_than_was_measured():
    declared = {info.name: info.guard_tokens for info in kernel_infos()}
    kept = Path(__file__).parents[2] / "docs" / "results" / "h200" / "overread.jsonl"
    measured = [json.loads(line) for line in kept.read_text().splitlines()]
    found = [one for one in measured if "unsupported" not in one]
    assert {one["kernel"] for one in found} >= SHIPPED
    for one in found:
        assert max(one["finite"], one["unmapped"]) <= declared[one["kernel"]], one


@pytest.mark.usefixtures("registry")
def test_the_guard_that_is_needed_is_that_of_the_kernels_that_can_run():
    assert guard_needed() == max(
        info.guard_tokens for info in kernel_infos() if info.unavailable is None
    )
    register(Constant("absent", unavailable="not here", guard_tokens=5000))
    assert guard_needed() < 5000
    register(Constant("present", guard_tokens=4000))
    assert guard_needed() == 4000


@pytest.mark.usefixtures("registry")
def test_register_refuses_taken_and_unknown_names():
    before = [info.name for info in kernel_infos()]
    with pytest.raises(errors.ConfigError, match="'sdpa' is registered"):
        register(Constant("sdpa"))
    with pytest.raises(errors.ConfigError, match="'nobody' is unknown"):
        register(Constant("new"), before="nobody")
    assert [info.name for info in kernel_infos()] == before
