# SPDX-License-Identifier: Apache-2.0
"""What ``bench attention`` compares with."""

# ruff: noqa: E402
from __future__ import annotations

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from weakref import ref

import pytest

torch = pytest.importorskip("torch")

from pyvattn import CacheSpec, KVCache, gpu_timing
from pyvattn.bench import attention
from pyvattn.errors import DriverUnavailable


@pytest.mark.parametrize("layers_per_arena", [4, 2])
def test_the_copy_in_torchs_memory_lies_as_the_cache_does(layers_per_arena):
    """Tokens of the layers lie between each other and do not overwrite each other."""
    spec = CacheSpec(4, 2, 8, dtype="bfloat16", max_slots=3, max_tokens=50, guard_tokens=0)
    with KVCache(
        spec, device="cpu", memory="1MiB", layout="token", layers_per_arena=layers_per_arena
    ) as cache:
        ours = [cache.layer(layer) for layer in range(spec.layers)]
        layers = [tuple(torch.randn(t.shape).to(t.dtype) for t in pair) for pair in ours]
        copies = attention._strided(torch, cache.geometry, layers)
        places = [(each.k.offset, each.v.offset) for each in cache.geometry.views]
        for found in zip(ours, copies, layers, places, strict=True):
            for mapped, copied, expected, offset in zip(*found, strict=True):
                assert copied.stride() == mapped.stride()
                assert copied.storage_offset() * copied.itemsize == offset
                assert torch.equal(copied, expected)


@pytest.mark.parametrize(
    ("gib", "layout", "kernel", "rows"),
    [
        (139, "token", "flash-attn-3", 32),
        (80, "token", "flash-attn-3", 19),
        (80, "layer", "flash-attn-3", 22),
        (80, "layer", "torch-varlen", 32),
        (24, "layer", "flash-attn-2", 13),
    ],
)
def test_a_smaller_card_gets_fewer_rows(gib, layout, kernel, rows):
    """A row of 4,096 tokens and the guard of Llama-3-8B is 536 MiB, twice at least.

    Once more at our strides in layout token, and in blocks: of four sizes with
    flash-attn-3, of one with flash-attn-2.
    """
    options = attention.Options(layout=layout, kernel=(kernel,))
    fitting = attention._that_fits(card(gib << 30), options, attention.SHAPES[0])
    assert (fitting.rows, fitting.name) == (rows, f"decode, {rows} x 4,096 tokens")


def test_a_card_without_room_for_a_row_is_refused():
    with pytest.raises(DriverUnavailable, match="fewer --layers"):
        attention._that_fits(card(1 << 30), attention.Options(), attention.SHAPES[0])


def test_the_tensors_of_a_shape_are_gone_when_the_next_one_is_fitted(monkeypatch):
    class Tensors(dict):
        pass

    alive = []

    def fill(_torch, _cache):
        made = Tensors()
        alive.append(ref(made))
        return made

    def fits(_torch, _options, shape):
        assert not any(one() for one in alive)
        return shape

    monkeypatch.setattr(attention, "require_gpu", lambda _device: card(1 << 40))
    monkeypatch.setattr(attention, "_that_fits", fits)
    monkeypatch.setattr(attention, "_open", open_small)
    monkeypatch.setattr(attention, "_fill", fill)
    monkeypatch.setattr(attention, "_compare", lambda *_: iter("m"))
    assert list(attention.measure(attention.Options())) == ["m"] * len(attention.SHAPES)


def open_small(_options, shape):
    spec = CacheSpec(1, 1, 8, max_slots=shape.rows, max_tokens=shape.context, guard_tokens=0)
    return KVCache(spec, device="cpu", layout="layer", memory="1GiB")


def card(free):
    class Torch:
        class cuda:
            mem_get_info = staticmethod(lambda _device: (free, 1 << 40))
            empty_cache = staticmethod(lambda: None)

    return Torch


class FakeCuda:
    """torch.cuda as far as a capture needs it; a capture that fails leaves its stream current."""

    def __init__(self):
        self.current, self.replayed, self.pools = "before", [], []

    def current_stream(self, _device=None):
        return SimpleNamespace(name=self.current, wait_stream=lambda _: None)

    def set_stream(self, stream):
        self.current = stream.name

    def Stream(self, _device=None):
        return SimpleNamespace(name="beside", wait_stream=lambda _: None)

    def stream(self, _stream):
        return nullcontext()

    def CUDAGraph(self):
        return SimpleNamespace(replay=lambda: self.replayed.append("graph"), pool=lambda: "pool")

    @contextmanager
    def graph(self, _graph, *, pool, capture_error_mode):
        assert capture_error_mode == "thread_local"
        self.pools.append(pool)
        self.current = "capture"
        yield
        self.current = "before"


@pytest.fixture
def cuda(monkeypatch):
    fake = SimpleNamespace(cuda=FakeCuda(), OutOfMemoryError=torch.OutOfMemoryError)
    monkeypatch.setattr(gpu_timing, "require_torch", lambda: fake)
    return fake.cuda


def failing_in_a_capture(cuda, error):
    def call():
        if cuda.current == "capture":
            raise error

    return call


def test_calls_are_replayed_where_all_can_be_captured(cuda):
    replays = gpu_timing.in_graphs({"a": lambda: None, "b": lambda: None})
    for replay in replays.values():
        replay()
    assert cuda.replayed == ["graph", "graph"]
    assert cuda.pools == [None, "pool"]  # the second shares the memory of the first


def test_where_one_call_cannot_be_captured_none_is_and_the_stream_is_as_before(cuda):
    waits = failing_in_a_capture(cuda, RuntimeError("operation not permitted"))
    assert gpu_timing.in_graphs({"a": lambda: None, "b": waits}) is None
    assert cuda.current == "before"


def test_a_capture_without_room_says_so(cuda):
    full = failing_in_a_capture(cuda, torch.OutOfMemoryError("full"))
    with pytest.raises(torch.OutOfMemoryError, match="full"):
        gpu_timing.in_graphs({"a": full})
