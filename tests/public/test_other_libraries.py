# SPDX-License-Identifier: Apache-2.0
"""What docs/beside.md says of other libraries on the CPU; tests/gpu/ has the rest."""

from __future__ import annotations

import re
from pathlib import Path

import numpy
import pytest
import torch

from pyvattn import CacheSpec, KVCache

ROOT = Path(__file__).resolve().parents[2]
SPEC = CacheSpec(2, 2, 16, "float32", max_slots=4, max_tokens=4096)


@pytest.fixture
def cache():
    with KVCache(SPEC, device="cpu", memory="64MiB", page_size="64K", layout="layer") as opened:
        yield opened


@pytest.fixture
def row(cache):
    """A request of 100 tokens, whose K counts them."""
    slot = cache.admit(100)
    cache.layer(0)[0][slot.index, :100] = torch.arange(100.0)[:, None, None]
    yield slot.index
    cache.release(slot)


def test_numpy_has_the_same_memory(cache, row):
    k, _ = cache.layer(0)
    array, _ = cache.layer(0, from_dlpack=numpy.from_dlpack)
    assert array.shape == tuple(k.shape)
    array[row, 7] = 70.0
    assert k[row, 7].eq(70.0).all()
    k[row, 8] = 80.0
    assert (array[row, 8] == 80.0).all()


@pytest.mark.filterwarnings("default")
def test_numba_compiles_over_a_layer(cache, row):
    numba = pytest.importorskip("numba", reason="pip install numba")

    @numba.njit
    def scale(k, row, length):
        total = 0.0
        for token in range(length):
            k[row, token] *= 2
            total += k[row, token, 0, 0]
        return total

    array, _ = cache.layer(0, from_dlpack=numpy.from_dlpack)
    assert scale(array, row, 100) == 2 * sum(range(100))
    assert cache.layer(0)[0][row, 99, 1, 15] == 198.0


@pytest.mark.filterwarnings("default")
def test_jax_takes_a_request_without_a_copy_and_refuses_whole_layers(cache, row):
    jax = pytest.importorskip("jax", reason="pip install jax")
    k, _ = cache.layer(0)
    request = jax.dlpack.from_dlpack(k[row, :100])
    assert request.unsafe_buffer_pointer() == k[row].data_ptr()
    assert float(request[:, 0, 0].sum()) == sum(range(100))
    with pytest.raises(Exception, match="stri"):
        cache.layer(0, from_dlpack=jax.dlpack.from_dlpack)


def test_compiled_functions_are_compiled_once_while_lengths_change(cache, row):
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    @torch.compile(backend=backend, dynamic=True, fullgraph=True)
    def write_and_sum(k, tokens):
        k[: tokens.shape[0]].add_(tokens[:, None, None])
        return k[: tokens.shape[0], 0, 0].sum()

    k = cache.layer(0)[0][row]
    for length in (40, 60, 80, 100):
        before = k[:length, 0, 0].sum()
        assert write_and_sum(k, torch.ones(length)) == before + length
    assert len(compiled) == 1
    assert k[99, 0, 0] == 100.0
    assert k[0, 1, 15] == 4.0


def test_every_line_of_the_page_has_a_test():
    """By the library's name: of a GPU the tests are in tests/gpu/."""
    page = (ROOT / "docs" / "beside.md").read_text(encoding="utf-8")
    table = page.partition("| --- |")[2].partition("\n\n")[0]
    libraries = re.findall(r"^\| ([^|]+) \|", table, re.MULTILINE)
    tests = Path(__file__).read_text(encoding="utf-8").partition("def test_every_line")[0]
    for path in (ROOT / "tests" / "gpu").glob("test_*.py"):
        tests += path.read_text(encoding="utf-8")
    words = {"CUDA graphs": "CUDAGraph", "torch's `MemPool`": "MemPool"}
    assert len(libraries) == 8
    for name in libraries:
        assert words.get(name, name.strip("`").lower()) in tests, name
