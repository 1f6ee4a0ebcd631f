# SPDX-License-Identifier: Apache-2.0
"""Tensors leave through DLPack: dtypes, strides, layouts, and who keeps what alive."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from checked_cache import small_spec

from pyvattn import (
    ArgumentError,
    CacheSpec,
    ClosedError,
    ConfigError,
    ExportError,
    KVCache,
    LayerError,
)


def test_shapes_and_strides_of_both_layouts(open_bench):
    for layout in ("layer", "token"):
        bench = open_bench(layout=layout)
        k, v = bench.arrays(1)
        assert k.shape == v.shape == (4, 1024, 4, 64)
        assert k.dtype == np.float32
        row = bench.cache.geometry.row_bytes
        token = 1024 if layout == "layer" else 4 * 1024
        assert k.strides == v.strides == (row, token, 256, 4)
        assert row >= (1024 + 192) * token


def test_token_layout_lays_a_token_side_by_side(open_bench):
    bench = open_bench(layout="token")
    (k0, v0), (k1, v1) = bench.arrays(0), bench.arrays(1)
    start = k0.ctypes.data
    assert [t.ctypes.data - start for t in (v0, k1, v1)] == [1024, 2048, 3072]


def test_arenas_of_a_few_layers():
    spec = small_spec(layers=6)
    with KVCache(
        spec, device="cpu", memory="16MiB", layout="token", layers_per_arena=2, page_size="64K"
    ) as cache:
        assert cache.geometry.arenas == 3
        slot = cache.acquire()
        cache.step({slot: 10})
        for layer in range(6):
            for tensor in cache.layer(layer, np.from_dlpack):
                tensor[slot, :10] = layer
        for layer in range(6):
            for tensor in cache.layer(layer, np.from_dlpack):
                assert (tensor[slot, :10] == layer).all()


def test_mla_has_one_latent_arena():
    spec = CacheSpec.mla(layers=3, latent_dim=32, rope_dim=8, dtype="float32", max_tokens=512)
    with KVCache(spec, device="cpu", memory="16MiB", layout="layer") as cache:
        assert cache.geometry.arenas == 3
        slot = cache.acquire()
        cache.step({slot: 5})
        k, v = cache.layer(2, np.from_dlpack)
        assert k.shape == (256, 512, 1, 40)
        assert v.shape == (256, 512, 1, 32)
        k[slot, :5] = np.arange(40)
        assert (v[slot, :5] == np.arange(32)).all()


@pytest.mark.parametrize(
    "dtype", ["float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"]
)
def test_torch_sees_every_dtype(dtype):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    spec = small_spec(dtype=dtype)
    with KVCache(spec, device="cpu", memory="16MiB") as cache:
        slot = cache.acquire()
        cache.step({slot: 20})
        k, v = cache.layer(0)
        assert k.dtype == v.dtype == getattr(torch, dtype)
        data = torch.randn(20, 4, 64).to(k.dtype)
        k[slot.index, :20] = data
        again, _ = cache.layer(0)
        assert torch.equal(again[slot.index, :20].float(), data.float())
        assert again.data_ptr() == k.data_ptr()


def test_torch_gets_no_tensors_of_a_closed_cache():
    pytest.importorskip("torch", reason="torch is not installed")
    cache = KVCache(small_spec(), device="cpu", memory="16MiB")
    cache.layer(1)
    cache.close()
    with pytest.raises(ClosedError):
        cache.layer(1)


@pytest.mark.parametrize("dtype", ["float32", "float8_e5m2"])
def test_tensors_made_in_inference_mode_can_be_written_outside(dtype):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    spec = CacheSpec(2, 2, 16, dtype, max_slots=2, max_tokens=64)
    with KVCache(spec, device="cpu", memory="16MiB") as cache:
        row = cache.admit(4).index
        with torch.inference_mode():
            cache.layer(0)[0][row, :2] = 1.0
        k, _ = cache.layer(0)
        k[row, 2:4] = 1.0
        assert (k[row, :4].float() == 1).all()


def test_what_a_caller_does_to_its_tensor_is_its_own():
    pytest.importorskip("torch", reason="torch is not installed")
    with KVCache(small_spec(), device="cpu", memory="16MiB") as cache:
        slot = cache.acquire()
        cache.step({slot: 5})
        for tensor in cache.layer(1):
            tensor[slot, :5] = 3
            tensor.transpose_(1, 2)
            tensor.resize_(1)
        for tensor in cache.layer(-1):
            assert tensor.shape == (4, 1024, 4, 64)
            assert (tensor[slot, :5] == 3).all()


def test_layers_count_from_either_end(open_bench):
    bench = open_bench()
    assert bench.arrays(-1)[0].ctypes.data == bench.arrays(1)[0].ctypes.data
    assert bench.arrays(np.int64(1))[0].ctypes.data == bench.arrays(1)[0].ctypes.data
    for index in (2, -3, 2**70):
        with pytest.raises(LayerError, match=f"layer {index} is outside") as caught:
            bench.arrays(index)
        assert isinstance(caught.value, IndexError)
    for index in ("0", 1.0, None, True, [1]):
        with pytest.raises(ArgumentError, match="use a whole number from 0 to 1"):
            bench.arrays(index)
    with pytest.raises(ArgumentError, match="from_dlpack=5"):
        bench.cache.layer(0, 5)


def test_a_tensor_outlives_the_cache_without_crashing(open_bench):
    """Its addresses stay reserved; on the host they read as zeros."""
    bench = open_bench()
    slot = bench.cache.acquire()
    bench.cache.step({slot: 10})
    k, _ = bench.arrays()
    k[slot, :10] = 1
    bench.cache.close()
    gc.collect()
    assert not k[slot.index, :1000].any()


def test_a_tensor_that_nobody_took_is_freed(open_bench):
    bench = open_bench()
    view = bench.cache._native.view(0, 0, [4], [1], "float32")
    for version in (None, (1, 0)):
        capsule = view.__dlpack__(max_version=version)
        del capsule
    del view
    bench.cache.close()
    gc.collect()
    assert bench.checked.live_reservations == 0


def test_views_outside_the_arena_are_refused(open_bench):
    native = open_bench().cache._native
    for offset, shape, strides in (
        (0, [1 << 40], [1]),
        (1 << 40, [1], [1]),
        # What overflows 64 bits is not small.
        (0, [(1 << 40) + 1], [1 << 40]),
        ((1 << 64) - 4, [2], [1]),
        (0, [2, 2], [(1 << 63) - 1] * 2),
        (0, [1 << 62], [1]),
        (0, [4], [1, 1]),
        (0, [], []),
        (0, [-1], [1]),
        (0, [4], [-1]),
    ):
        with pytest.raises(ConfigError, match="reaches past the end"):
            native.view(0, offset, shape, strides, "float32")
    with pytest.raises(ConfigError, match="arena 99"):
        native.view(99, 0, [1], [1], "float32")
    with pytest.raises(ConfigError, match="int3"):
        native.view(0, 0, [1], [1], "int3")


def test_no_copy_and_no_other_device(open_bench):
    view = open_bench().cache._native.view(0, 0, [4], [1], "float32")
    assert view.__dlpack_device__() == (1, 0)
    for options in (
        {"copy": True},
        {"dl_device": (2, 0)},
        {"dl_device": 1},
        {"dl_device": (1, 0, 0)},
        {"max_version": "1"},
    ):
        with pytest.raises(ExportError) as caught:
            view.__dlpack__(**options)
        assert isinstance(caught.value, BufferError)


def test_what_the_arguments_of_an_export_raise_passes_through(open_bench):
    class Hostile:
        def __bool__(self):
            raise KeyboardInterrupt

        __index__ = __iter__ = __bool__

    view = open_bench().cache._native.view(0, 0, [4], [1], "float32")
    for options in (
        {"copy": Hostile()},
        {"dl_device": Hostile()},
        {"max_version": (Hostile(), 0)},
    ):
        with pytest.raises(KeyboardInterrupt):
            view.__dlpack__(**options)
