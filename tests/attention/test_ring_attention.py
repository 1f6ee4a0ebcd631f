# SPDX-License-Identifier: Apache-2.0
"""Layers whose rows are rings: appended to, and attended to by kernels as they are.

Expected values come from K and V as they were before they went into the cache, in float64.
The caches are strict: what may not be read any more is NaN.
"""

# ruff: noqa: E402
from __future__ import annotations

import random

import pytest

torch = pytest.importorskip("torch")

from pyvattn import BlockPool, CacheSpec, KVCache, LayerGroup, RowMap
from pyvattn.attention import Kernel, KVScales, append, attend, set_scales
from pyvattn.attention.flex import FlexKernel
from pyvattn.attention.indices import KnownIndices
from pyvattn.attention.registry import _KERNELS, register
from pyvattn.errors import TensorError, UnsupportedError

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

WINDOW, GUARD = 20, 5
HEADS, DIM = 4, 128
KERNELS = ["reference", "sdpa", "flex"]


def ring_spec(**changes):
    """32 tokens of the windowed layer in a page of 64K, and of the full one."""
    groups = [
        LayerGroup([0], HEADS, DIM, window=WINDOW, ring=True),
        LayerGroup([1], HEADS, DIM),
    ]
    fields = {"dtype": "float32", "max_slots": 3, "max_tokens": 400, "guard_tokens": GUARD}
    return CacheSpec(groups=groups, **{**fields, **changes})


def open_ring(spec=None, **options):
    given = {"driver": "host", "page_size": "64K", "layout": "layer", "memory": "64M"}
    return KVCache(spec or ring_spec(), device="cpu", strict=True, **{**given, **options})


def windowed(q, k, v, lengths, counts, sinks=None):
    """Attention of each row's last queries over all tokens so far, in float64."""
    outs, end = [], 0
    for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        queries = q[end : end + count].double()
        end += count
        keys, values = (x[row][:length].double().repeat_interleave(2, dim=1) for x in (k, v))
        scores = torch.einsum("qhd,khd->hqk", queries, keys) * DIM**-0.5
        at = torch.arange(length - count, length)[:, None]
        seen = torch.arange(length)[None]
        scores = scores.masked_fill((seen > at) | (seen <= at - WINDOW), -torch.inf)
        if sinks is not None:
            sink = sinks.double()[:, None, None].expand(-1, count, 1)
            scores = torch.cat([scores, sink], dim=-1)
        weights = scores.softmax(-1)[..., :length]
        outs.append(torch.einsum("hqk,khd->qhd", weights, values))
    return torch.cat(outs)


class Model:
    """Requests whose K and V are kept beside the cache."""

    def __init__(self, cache, rows, seed):
        self.cache = cache
        self.random = torch.Generator().manual_seed(seed)
        self.slots = [cache.acquire(0) for _ in range(rows)]
        shape = (rows, cache.spec.max_tokens, HEADS, DIM)
        self.k, self.v = (torch.randn(shape, generator=self.random) for _ in range(2))
        self.lengths = [0] * rows

    def rows(self):
        return [slot.index for slot in self.slots]

    def append(self, counts):
        """Append so many new tokens to each row, as two lists of places."""
        slots, positions = [], []
        for row, count in enumerate(counts):
            slots += [self.slots[row].index] * count
            positions += range(self.lengths[row], self.lengths[row] + count)
        spans = [slice(at, at + n) for at, n in zip(self.lengths, counts, strict=True)]
        new = [
            torch.cat([x[row, span] for row, span in enumerate(spans)]) for x in (self.k, self.v)
        ]
        self.cache.step(
            {s: n + c for s, n, c in zip(self.slots, self.lengths, counts, strict=True)}
        )
        where = (torch.tensor(each, dtype=torch.int64) for each in (slots, positions))
        append(self.cache, 0, *where, *new)
        self.lengths = [length + n for length, n in zip(self.lengths, counts, strict=True)]

    def queries(self, total):
        return torch.randn((total, 2 * HEADS, DIM), generator=self.random)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("seed", range(2))
def test_a_ring_gives_what_plain_rows_give_for_ten_windows(kernel, seed):
    rng = random.Random(seed)
    with open_ring() as cache:
        assert cache.geometries[0].ring_tokens == 64
        assert cache.chunk_tokens == 64 - (WINDOW - 1) - GUARD
        model = Model(cache, 3, seed)
        while min(model.lengths) < 10 * WINDOW:
            counts = [rng.choice([0, 1, 1, rng.randint(1, cache.chunk_tokens)]) for _ in range(3)]
            model.append(counts)
            q = model.queries(sum(counts))
            out = attend(
                q, cache, 0, model.rows(), model.lengths, kernel=kernel, query_counts=counts
            )
            expected = windowed(q, model.k, model.v, model.lengths, counts)
            torch.testing.assert_close(out.double(), expected, atol=2e-5, rtol=2e-5)


def test_indices_of_every_kind_name_the_same_tokens():
    with open_ring() as cache:
        model = Model(cache, 3, 0)
        # Past both mappings of the ring, where a place that was not wrapped has no memory.
        for counts in [(30, 40, 1), (40, 2, 40), *[(40, 40, 40)] * 3, (3, 1, 40)]:
            model.append(counts)
        q = model.queries(3)
        model.append((1, 1, 1))
        rows, lengths = model.rows(), model.lengths
        expected = windowed(q, model.k, model.v, lengths, (1, 1, 1))
        tensors = torch.tensor(rows), torch.tensor(lengths)
        known = KnownIndices.of(rows, tensors[0]), KnownIndices.of(lengths, tensors[1])
        for slots, ends in [(rows, lengths), tensors, known]:
            for counts in [None, [1, 1, 1], torch.tensor([1, 1, 1])]:
                given = q if counts is not None else q[:, None]
                out = attend(given, cache, 0, slots, ends, query_counts=counts)
                torch.testing.assert_close(
                    out.reshape(expected.shape).double(), expected, atol=2e-5, rtol=2e-5
                )


def test_sinks_and_starts_go_with_a_ring():
    with open_ring() as cache:
        model = Model(cache, 1, 0)
        for count in (40, 40, 11):
            model.append([count])
        q, sinks = model.queries(11), torch.randn(2 * HEADS)
        length = model.lengths[0]
        out = attend(q, cache, 0, model.rows(), [length], sinks=sinks, query_counts=[11])
        expected = windowed(q, model.k, model.v, [length], [11], sinks)
        torch.testing.assert_close(out.double(), expected, atol=2e-5, rtol=2e-5)
        # A start within the window: padding, or the chunk that a token is in.
        last, start = q[-1:], length - 7
        out = attend(last[None], cache, 0, model.rows(), [length], starts=[start])
        k, v = model.k[:, start:length], model.v[:, start:length]
        torch.testing.assert_close(
            out[0].double(), windowed(last, k, v, [7], [1]), atol=2e-5, rtol=2e-5
        )


def test_rectangles_wrap_as_lists_do():
    with open_ring() as cache:
        model = Model(cache, 2, 0)
        model.append((35, 35))
        model.append((20, 20))
        slots = torch.tensor(model.rows())[:, None]
        cache.step(dict.fromkeys(model.slots, 75))
        append(cache, 0, slots, torch.arange(55, 75)[None], model.k[:, 55:75], model.v[:, 55:75])
        k, v = cache.layer(0)
        assert k.shape == (3, 128, HEADS, DIM)
        for row, slot in enumerate(model.slots):
            run = slice(55, 75)
            assert torch.equal(k[slot.index, run], model.k[row, run])
            assert torch.equal(v[slot.index, 64:75], model.v[row, 64:75])
            assert torch.equal(v[slot.index, :11], model.v[row, 64:75])


def test_float8_goes_round_as_well():
    spec = ring_spec(dtype="float8_e4m3fn")
    with open_ring(spec) as cache:
        ones = [torch.ones(HEADS)] * 2
        set_scales(cache, KVScales(ones, ones))
        assert cache.geometries[0].ring_tokens == 128
        slot = cache.admit(100)
        cache.step({slot: 140})
        new = torch.full((40, HEADS, DIM), 0.5)
        places = torch.arange(100, 140)
        append(cache, 0, torch.full_like(places, slot.index), places, new, new)
        k, _ = cache.layer(0)
        assert (k[slot.index, 100:140].float() == 0.5).all()
        assert (k[slot.index, :12].float() == 0.5).all()


def test_pieces_of_a_long_step_are_attended_to_one_after_the_other():
    with open_ring() as cache:
        model = Model(cache, 1, 0)
        slot = model.slots[0]
        cache.step({slot: 333})
        q = model.queries(333)
        outs = []
        for first in range(0, 333, cache.chunk_tokens):
            end = min(first + cache.chunk_tokens, 333)
            where = torch.arange(first, end)
            new = model.k[0, first:end], model.v[0, first:end]
            append(cache, 0, torch.full_like(where, slot.index), where, *new)
            outs.append(
                attend(q[first:end], cache, 0, [slot.index], [end], query_counts=[end - first])
            )
        expected = windowed(q, model.k, model.v, [333], [333])
        torch.testing.assert_close(torch.cat(outs).double(), expected, atol=2e-5, rtol=2e-5)


def test_more_than_a_ring_keeps_is_refused():
    with open_ring() as cache:
        slot = cache.admit(100)
        most = cache.chunk_tokens
        q = torch.zeros(1, most + 1, 2 * HEADS, DIM)
        attend(q[:, :most], cache, 0, [slot.index], [100])
        with pytest.raises(TensorError, match=r"row 0 attends to 60 tokens .* room for 59"):
            attend(q, cache, 0, [slot.index], [100])
        new = torch.zeros(1, most + 1, HEADS, DIM)
        where = torch.arange(most + 1)[None]
        with pytest.raises(TensorError, match=f"{most + 1} new tokens .* {most}, at a time"):
            append(cache, 0, torch.tensor([[slot.index]]), where, new, new)
        # The full layer has no such bound.
        append(cache, 1, torch.tensor([[slot.index]]), where, new, new)


class WholeRows(Kernel):
    name = "whole-rows"
    supports = "whole rows"

    def attend(self, problem):
        raise AssertionError("was to be refused")


def test_what_a_kernel_has_not_is_refused_by_name(monkeypatch):
    monkeypatch.setattr("pyvattn.attention.registry._KERNELS", dict(_KERNELS))
    register(FlexKernel("positions", mask_mod=lambda b, h, q, k: k % 2 == 0))
    register(WholeRows())
    with open_ring() as cache:
        slot = cache.admit(30)
        q = torch.zeros(1, 1, 2 * HEADS, DIM)
        with pytest.raises(UnsupportedError, match="a row that is a ring has not"):
            attend(q, cache, 0, [slot.index], [30], kernel="positions")
        with pytest.raises(UnsupportedError, match="'whole-rows': does not do starts"):
            attend(q, cache, 0, [slot.index], [30], kernel="whole-rows")


def test_a_row_map_of_rings_is_attended_to_likewise():
    """An engine with blocks of its own: its rows have a ring's positions."""
    spec = CacheSpec(
        groups=[LayerGroup([0], HEADS, DIM, window=WINDOW, ring=True)],
        dtype="float32",
        max_slots=2,
        max_tokens=400,
        guard_tokens=GUARD,
    )
    options = {"device": "cpu", "driver": "host", "page_size": "64K", "layout": "layer"}
    with BlockPool(spec, memory="4M", **options) as pool:
        rows = RowMap(pool)
        assert rows.positions == 2
        assert rows.chunk_tokens == 40
        row = rows.open(pool.allocate(2))
        rows.flush()
        generator = torch.Generator().manual_seed(0)
        k, v = (torch.randn((1, 300, HEADS, DIM), generator=generator) for _ in range(2))
        for first in range(0, 300, 30):
            where = torch.arange(first, first + 30)
            new = k[0, first : first + 30], v[0, first : first + 30]
            append(rows, 0, torch.full_like(where, row), where, *new)
            q = torch.randn((30, 2 * HEADS, DIM), generator=generator)
            out = attend(q, rows, 0, [row], [first + 30], query_counts=[30])
            expected = windowed(q, k, v, [first + 30], [30])
            torch.testing.assert_close(out.double(), expected, atol=2e-5, rtol=2e-5)
