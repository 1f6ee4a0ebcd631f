# SPDX-License-Identifier: Apache-2.0
"""Prompts of a step that attend in one call of a kernel that takes packed queries."""

from __future__ import annotations

from functools import partial

import pytest
from test_chunks import tiny as make_chunked
from test_engine import expected_output, open_kv
from test_windows import tiny
from tiny_models import make_gpt2, make_llama, random_prompts

from pyvattn.attention import Kernel, registry
from pyvattn.attention.features import Feature
from pyvattn.attention.reference import ReferenceKernel
from pyvattn.integrations.transformers import Engine, decode
from pyvattn.integrations.transformers.parts import Calls

LENGTHS = (20, 3, 41, 1, 9)


class PackedKernel(Kernel):
    """The reference, as a kernel that needs no value on the host; ``counts`` of each call."""

    name = "packed"
    supports = "tests"
    features = frozenset(Feature)
    capturable = True

    def __init__(self):
        self.counts = []

    def attend(self, problem):
        self.counts.append(tuple(problem.host_counts) if problem.packed else None)
        return ReferenceKernel().attend(problem)


@pytest.fixture
def kernel(monkeypatch):
    kernel = PackedKernel()
    monkeypatch.setattr(registry, "_KERNELS", {kernel.name: kernel, **registry._KERNELS})
    return kernel


def serve(model, most=32):
    with open_kv(model, slots=6) as kv, Engine(model, kv, max_prefill_tokens=most) as engine:
        requests = [engine.submit(prompt, 6) for prompt in random_prompts(LENGTHS)]
        engine.run()
    return requests


@pytest.mark.parametrize(
    "make",
    [
        partial(make_llama, num_hidden_layers=2),
        make_gpt2,
        partial(tiny, "Gemma3Text"),
        make_chunked,
    ],
)
def test_requests_get_the_tokens_they_get_alone(make, kernel):
    """Pieces that begin in the middle of a prompt, layers with windows: all as they lie.

    Layers that attend within chunks take each piece apart where a chunk ends.
    """
    model = make()
    requests = serve(model)
    for request in requests:
        assert request.output == expected_output(model, request.prompt, 6)
    # 20, 3 and 9 of 41; the other 32; 1 and 9.
    packed = [counts for counts in kernel.counts if counts is not None]
    assert set(packed) == {(20, 3, 9), (1, 9)}


def test_queries_of_a_batch_are_neither_copied_nor_padded(llama, kernel, monkeypatch):
    places = []
    real = PackedKernel.attend

    def attend(self, problem):
        out = real(self, problem)
        if problem.packed:
            places.append((problem.q.is_contiguous(), len(problem.q), len(out)))
        return out

    monkeypatch.setattr(PackedKernel, "attend", attend)
    serve(llama, most=128)
    assert places == [(True, sum(LENGTHS), sum(LENGTHS))] * llama.config.num_hidden_layers


def test_kernels_without_packed_queries_take_groups(llama, kernel, monkeypatch):
    monkeypatch.setattr(PackedKernel, "features", frozenset(Feature) - {Feature.PACKED})
    with open_kv(llama) as kv:
        assert decode.calls_for(llama, kv) is Calls.GROUPED
        monkeypatch.setattr(PackedKernel, "features", frozenset(Feature))
        assert decode.calls_for(llama, kv) is Calls.PACKED
        monkeypatch.setattr(PackedKernel, "capturable", False)
        assert decode.calls_for(llama, kv) is Calls.ALONE
