# SPDX-License-Identifier: Apache-2.0
"""Ragged batches over rows, attended to without a block table."""

from __future__ import annotations

import types

import pytest
import torch

from pyvattn import ConfigError, UnsupportedError
from pyvattn.attention import Feature, FlexKernel, Kernel
from pyvattn.attention.indices import KnownIndices
from pyvattn.attention.problem import Problem
from pyvattn.attention.reference import ReferenceKernel
from pyvattn.integrations.vllm.row_attention import Batch, attend, kernel_name, write
from pyvattn.integrations.vllm.row_layout import RowsOfRequests

ROWS, TOKENS, KV_HEADS, HEADS, DIM = 5, 32, 2, 4, 16
SCALE = DIM**-0.5
FLEX = FlexKernel("every-other-token", mask_mod=lambda b, h, q, k: (q - k) % 2 == 0)
NO_KERNEL = object()


class OverReading(Kernel):
    """Reads a tile past a length."""

    name = "over-reading"
    supports = "nothing"
    features = frozenset((Feature.PACKED,))
    guard_tokens = 192

    def attend(self, problem):
        raise AssertionError("it must not be asked")


OVER_READING = OverReading()


def cache():
    torch.manual_seed(0)
    return torch.randn(ROWS, TOKENS, 2, KV_HEADS, DIM)


def ragged():
    """Two decodes, a request that has no queries, a chunk behind 5 tokens, and a whole prompt."""
    queries, lengths = [1, 1, 0, 4, 7], [9, 3, 6, 9, 7]
    counts = KnownIndices.of(queries, torch.tensor(queries))
    rows = torch.tensor([3, 1, 0, 4, 2])
    return Batch(counts, rows, torch.tensor(lengths, dtype=torch.int32))


def expected(query, kv, batch, kernel, **options):
    """One request at a time, by a kernel of the reference kind."""
    out = torch.zeros_like(query)
    end = 0
    for i, count in enumerate(batch.counts):
        start, end = end, end + count
        if count:
            rows, lengths = [int(batch.rows[i])], [int(batch.lengths[i])]
            keys, values = kv[:, :, 0], kv[:, :, 1]
            problem = Problem(
                query[None, start:end], keys, values, rows, lengths, True, SCALE, **options
            )
            out[start:end] = kernel.attend(problem)[0]
    return out


def test_a_ragged_batch_gets_what_each_request_gets_alone():
    kv, batch = cache(), ragged()
    query = torch.randn(sum(batch.counts), HEADS, DIM)
    out = torch.empty_like(query)
    attend(out, query, kv, batch, SCALE, "auto")
    torch.testing.assert_close(out, expected(query, kv, batch, ReferenceKernel()))


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("kernel", ["auto", f"{__name__}:FLEX"])
def test_nothing_is_read_in_front_of_a_window(kernel):
    kv, batch, window = cache(), ragged(), 3
    query = torch.randn(sum(batch.counts), HEADS, DIM)
    name = kernel_name(kernel)
    alone = FLEX if name == FLEX.name else ReferenceKernel()
    wanted = expected(query, kv, batch, alone, window_size=(window - 1, -1))
    for row, length, count in zip(batch.rows, batch.lengths, batch.counts, strict=True):
        kv[row, : max(0, length - count - window + 1)] = torch.nan
    out = torch.empty_like(query)
    attend(out, query, kv, batch, SCALE, name, window)
    torch.testing.assert_close(out, wanted)
    # A window that all tokens are in changes nothing.
    kv = cache()
    attend(out, query, kv, batch, SCALE, name, TOKENS)
    torch.testing.assert_close(out, expected(query, kv, batch, alone))


@pytest.mark.parametrize("windowed", [True, False])
def test_the_row_of_a_request_is_that_of_its_last_block_where_layers_have_windows(windowed):
    # Rows of 10 positions: a running request, one whose first blocks vLLM took away, and padding.
    common = types.SimpleNamespace(
        num_reqs=3,
        seq_lens=torch.tensor([33, 64, 0, 7], dtype=torch.int32),
        block_table_tensor=torch.tensor(
            [[30, 31, 32, 0], [0, 0, 52, 53], [0, 0, 0, 0], [70, 0, 0, 0]], dtype=torch.int32
        ),
    )
    requests = RowsOfRequests(positions=10, block_tokens=16, windowed=windowed)
    wanted = [3, 5, 0] if windowed else [3, 0, 0]
    assert requests.rows(common).tolist() == wanted
    out = torch.empty(3, dtype=torch.int32)
    assert requests.rows(common, out=out) is out
    assert out.tolist() == wanted


def test_a_batch_is_one_call(monkeypatch):
    calls = []
    kernel = type(FLEX)

    def attend_once(self, problem):
        calls.append(problem)
        return torch.zeros_like(problem.q)

    monkeypatch.setattr(kernel, "attend", attend_once)
    kv, batch = cache(), ragged()
    query = torch.randn(sum(batch.counts), HEADS, DIM)
    attend(torch.empty_like(query), query, kv, batch, SCALE, kernel_name(f"{__name__}:FLEX"))
    (problem,) = calls
    assert problem.host_counts == (1, 1, 0, 4, 7)


@pytest.mark.parametrize("capturable", [True, False])
def test_the_host_reads_lengths_once_a_step_where_a_kernel_wants_them(monkeypatch, capturable):
    problems = []

    def attend_once(self, problem):
        problems.append(problem)
        return torch.zeros_like(problem.q)

    reads = []
    read = torch.Tensor.tolist
    monkeypatch.setattr(type(FLEX), "attend", attend_once)
    monkeypatch.setattr(type(FLEX), "capturable", capturable)
    monkeypatch.setattr(torch.Tensor, "tolist", lambda each: reads.append(each) or read(each))
    kv, batch = cache(), ragged()
    query = torch.randn(sum(batch.counts), HEADS, DIM)
    for window in (None, None, 3):
        name = kernel_name(f"{__name__}:FLEX")
        attend(torch.empty_like(query), query, kv, batch, SCALE, name, window)
    assert len(reads) == (0 if capturable else 2)  # rows and lengths
    for problem in problems:
        assert problem.host_slots == (3, 1, 0, 4, 2)
        assert problem.host_lengths == (9, 3, 6, 9, 7)
    assert problems[-1].host_starts == (6, 0, 4, 3, 0)


def test_a_batch_without_queries_asks_no_kernel():
    batch = Batch(KnownIndices.of([0], torch.tensor([0])), torch.tensor([1]), torch.tensor([3]))
    nothing = torch.empty(0, HEADS, DIM)
    attend(nothing, nothing, cache(), batch, SCALE, "auto")


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_a_mask_of_the_users_that_no_paged_kernel_has():
    kv, batch = cache(), ragged()
    query = torch.randn(sum(batch.counts), HEADS, DIM)
    out, plain = torch.empty_like(query), torch.empty_like(query)
    name = kernel_name(f"{__name__}:FLEX")
    assert kernel_name(f"{__name__}:FLEX") == name == "every-other-token"
    attend(out, query, kv, batch, SCALE, name)
    torch.testing.assert_close(out, expected(query, kv, batch, FLEX))
    attend(plain, query, kv, batch, SCALE, "auto")
    assert not torch.allclose(out, plain)


def test_new_tokens_land_at_their_slots_and_padding_nowhere():
    kv = cache()
    before = kv.clone()
    key, value = torch.randn(4, KV_HEADS, DIM), torch.randn(4, KV_HEADS, DIM)
    write(kv, key, value, torch.tensor([3 * TOKENS + 5, -1, 2, -1]))
    before[3, 5] = torch.stack([key[0], value[0]])
    before[0, 2] = torch.stack([key[2], value[2]])
    torch.testing.assert_close(kv, before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("nothing", "kernel 'nothing': use one of auto, "),
        ("no_such_module:x", "No module named 'no_such_module'; name a module"),
        (f"{__name__}:MISSING", "has no attribute 'MISSING'"),
        (f"{__name__}:NO_KERNEL", "use a kernel, such as pyvattn.attention.FlexKernel"),
    ],
)
def test_a_kernel_that_is_none_is_named(wanted, message):
    with pytest.raises(ConfigError, match=message):
        kernel_name(wanted)


def test_a_kernel_that_reads_past_a_length_is_refused():
    kv, batch = cache(), ragged()
    query = torch.randn(sum(batch.counts), HEADS, DIM)
    name = kernel_name(f"{__name__}:OVER_READING")
    with pytest.raises(UnsupportedError, match="'over-reading': may read 192 tokens past"):
        attend(torch.empty_like(query), query, kv, batch, SCALE, name)


def test_a_kernel_that_takes_no_packed_queries_is_refused(monkeypatch):
    kv, batch = cache(), ragged()
    query = torch.randn(sum(batch.counts), HEADS, DIM)
    monkeypatch.setattr(OVER_READING, "features", frozenset())
    name = kernel_name(f"{__name__}:OVER_READING")
    with pytest.raises(UnsupportedError, match="'over-reading': does not do packed queries"):
        attend(torch.empty_like(query), query, kv, batch, SCALE, name)
