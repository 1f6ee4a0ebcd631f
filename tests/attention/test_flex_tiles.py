# SPDX-License-Identifier: Apache-2.0
"""FlexAttention for many short rows in one call, which reads no page that is not theirs."""

# ruff: noqa: E402
from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

torch = pytest.importorskip("torch")

from pyvattn.attention import FlexKernel, flex, flex_tiles, tiles
from pyvattn.attention.indices import KnownIndices
from pyvattn.attention.problem import Problem
from pyvattn.attention.reference import ReferenceKernel

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

ROWS, TOKENS, KV_HEADS, HEADS, DIM, PAGE = 7, 320, 2, 6, 16, 32
FLEX = FlexKernel()
# Each a row, its queries and its tokens.
DECODE = [(3, 1, 9), (1, 1, 64), (6, 1, 320), (0, 1, 33)]
SHORT = [(5, 1, 100), (2, 0, 50), (4, 7, 7), (6, 40, 300), (1, 128, 128)]
MIXED = [(5, 1, 100), (2, 150, 200), (4, 3, 3), (0, 300, 300)]


def problem(batch, **options):
    """A packed problem whose K and V are no numbers outside the pages of its rows."""
    torch.manual_seed(0)
    slots, counts, lengths = map(list, zip(*batch, strict=True))
    kv = torch.full((ROWS, TOKENS, 2, KV_HEADS, DIM), torch.nan)
    for slot, length in zip(slots, lengths, strict=True):
        mapped = -(-length // PAGE) * PAGE
        kv[slot, :mapped] = torch.randn(mapped, 2, KV_HEADS, DIM)
    q = torch.randn(sum(counts), HEADS, DIM)
    options.setdefault("causal", True)
    return Problem(
        q,
        kv[:, :, 0],
        kv[:, :, 1],
        slots,
        lengths,
        scale=0.3,
        query_counts=KnownIndices.of(counts, torch.tensor(counts)),
        page_bytes=PAGE * kv.stride(1) * kv.itemsize,
        **options,
    )


def expected(asked):
    finite = replace(asked, k=asked.k.nan_to_num(), v=asked.v.nan_to_num())
    return ReferenceKernel().attend(finite)


@pytest.fixture(params=[1, 30], ids=["whole", "split"])
def programs(request, monkeypatch):
    """How many programs a device runs at once, among which the keys of a tile are split."""
    monkeypatch.setattr(flex, "_programs", lambda device: request.param)
    return request.param


@pytest.fixture
def calls(monkeypatch):
    """What FlexAttention was called for: ``tiles`` of many rows, or a ``row``."""
    made = []

    def counted(name, attend):
        def attend_counted(*arguments, **options):
            made.append(name)
            return attend(*arguments, **options)

        return attend_counted

    monkeypatch.setattr(flex, "attend_tiles", counted("tiles", flex.attend_tiles))
    monkeypatch.setattr(FlexKernel, "_attend", counted("row", FlexKernel._attend))
    return made


@pytest.mark.parametrize(
    ("batch", "wanted"),
    [(DECODE, ["tiles"]), (SHORT, ["tiles"]), (MIXED, ["tiles", "row", "row"])],
    ids=["decode", "short", "mixed"],
)
def test_short_rows_are_one_call_that_reads_no_page_but_theirs(batch, wanted, calls, programs):
    asked = problem(batch)
    torch.testing.assert_close(FLEX.attend(asked), expected(asked))
    assert calls == wanted


@pytest.mark.parametrize(
    "options",
    [
        {"causal": False},
        {"window_size": (20, -1)},
        {"window_size": (5, 3), "causal": False},
        {"softcap": 1.5},
        {"starts": [0, 0, 2, 250, 64]},
        {"alibi_slopes": torch.rand(HEADS)},
        {"alibi_slopes": torch.rand(len(SHORT), HEADS)},
    ],
    ids=["full", "window", "both-sides", "softcap", "starts", "alibi", "alibi-by-row"],
)
def test_what_a_problem_asks_for_holds_for_short_rows_too(options, calls, programs):
    asked = problem(SHORT, **options)
    torch.testing.assert_close(FLEX.attend(asked), expected(asked))
    assert calls == ["tiles"]


def test_functions_get_positions_in_the_row_and_its_place_in_the_batch(programs):
    """As they do where each row is a call of its own."""

    def score(score, batch, head, query, key):
        return score + 0.1 * batch - 0.2 * head * (query - key) / 50

    kernel = FlexKernel(
        "own", score_mod=score, mask_mod=lambda b, h, q, k: (q - k + b) % 3 != h % 2
    )
    asked = problem(SHORT)
    by_row = kernel.attend(replace(asked, page_bytes=None))
    torch.testing.assert_close(kernel.attend(asked), by_row)


def test_a_query_whose_every_key_is_masked_comes_out_as_zero(programs):
    kernel = FlexKernel("first", mask_mod=lambda b, h, q, k: k > 1000)
    assert not kernel.attend(problem(DECODE)).any()


@pytest.mark.parametrize("change", ["pages", "ring", "block"])
def test_rows_that_may_end_within_a_block_are_a_call_each(change, calls):
    asked = problem(DECODE)
    changed = {
        "pages": {"page_bytes": None},
        "ring": {"in_ring": True},
        "block": {"page_bytes": 8 * asked.k.stride(1) * asked.k.itemsize},
    }[change]
    out = FLEX.attend(replace(asked, **changed))
    torch.testing.assert_close(out, expected(asked))
    assert calls == ["row"] * len(DECODE)


def test_layers_that_share_a_step_cut_it_once(monkeypatch):
    made = []
    monkeypatch.setattr(flex, "cut", lambda *a: made.append(a) or tiles.cut(*a))
    step = {}
    for _ in range(3):
        asked = problem(DECODE, shared=step)
        torch.testing.assert_close(FLEX.attend(asked), expected(asked))
    assert len(made) == 1


def test_batches_of_any_size_and_length_are_one_graph(monkeypatch):
    """On a GPU it is compiled, by two variants: with a tile's keys whole and in parts."""
    graphs = []

    def counted(graph, inputs):
        graphs.append(graph)
        return graph.forward

    @cache
    def compiled(variant):
        return torch.compile(flex_tiles._attend, dynamic=True, fullgraph=True, backend=counted)

    torch.compiler.reset()
    monkeypatch.setattr(flex_tiles, "_compiles", lambda device: True)
    monkeypatch.setattr(flex_tiles, "_compiled", compiled)
    for programs, wanted in ((1, 1), (100, 2)):
        monkeypatch.setattr(flex, "_programs", lambda device, count=programs: count)
        for batch in (DECODE, DECODE[:1], DECODE[:3], DECODE[2:], DECODE * 5):
            asked = problem(batch)
            # Without a kernel torch reads all keys.
            finite = replace(asked, k=asked.k.nan_to_num(), v=asked.v.nan_to_num())
            torch.testing.assert_close(FLEX.attend(finite), expected(asked))
        assert len(graphs) == wanted
