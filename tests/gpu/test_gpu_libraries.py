# SPDX-License-Identifier: Apache-2.0
"""What docs/beside.md says of other libraries on a GPU, on the default driver."""

# ruff: noqa: E402
from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from pyvattn import CacheSpec, KVCache

SPEC = CacheSpec(2, 8, 128, "float32", max_slots=4, max_tokens=8192)


@pytest.fixture
def cache():
    with KVCache(SPEC, device="cuda", driver="cumem", layout="layer", memory="1GiB") as opened:
        yield opened
        torch.cuda.synchronize()


@pytest.fixture
def request_k(cache):
    """K of a request of 1,000 tokens, which counts them."""
    slot = cache.admit(1000)
    k = cache.layer(0)[0][slot.index, :1000]
    k.copy_(torch.arange(1000.0, device="cuda")[:, None, None].expand_as(k))
    yield k
    cache.release(slot)


def test_cupy_writes_the_same_memory(request_k):
    cupy = pytest.importorskip("cupy")
    array = cupy.from_dlpack(request_k)
    torch.cuda.synchronize()
    array *= 2
    cupy.cuda.get_current_stream().synchronize()
    assert request_k[999, 7, 127].item() == 1998.0


def test_numba_kernels_write_the_same_memory(request_k):
    try:
        from numba import cuda
        from numba.cuda import cudaimpl  # noqa: F401  as the first launch does
    except (ImportError, AttributeError) as error:  # the second: made for another NumPy
        pytest.skip(f"numba cannot be imported here: {error}")
    if not cuda.is_available():
        pytest.skip("numba finds no CUDA toolkit")

    @cuda.jit
    def double(k, length):
        token = cuda.grid(1)
        if token < length:
            k[token, 0, 0] *= 2

    torch.cuda.synchronize()
    double[8, 128](cuda.as_cuda_array(request_k), 1000)
    cuda.synchronize()
    assert request_k[:, 0, 0].eq(2 * torch.arange(1000.0, device="cuda")).all()
    assert request_k[999, 1, 0].item() == 999.0


def test_triton_kernels_take_the_tensor_and_its_strides(cache, request_k):
    triton = pytest.importorskip("triton")
    from gpu_kernels import add_one

    add_one[(triton.cdiv(1000, 128),)](request_k, 1000, request_k.stride(0), BLOCK=128)
    assert request_k[:, 0, 0].eq(torch.arange(1000.0, device="cuda") + 1).all()
    assert request_k[999, 0, 1].item() == 999.0


def test_tensors_of_a_mempool_come_and_go_beside_the_cache(cache, request_k):
    pool = torch.cuda.MemPool()
    before = request_k.clone()
    for size in (1 << 20, 1 << 24, 1 << 22):
        with torch.cuda.use_mem_pool(pool):
            made = torch.full((size,), -1.0, device="cuda")
        grown = cache.admit(2000)
        made.add_(1.0)
        assert not made.any()
        cache.release(grown)
        del made
    assert request_k.eq(before).all()


def test_compiled_code_reads_and_writes_the_layers(request_k):
    @torch.compile(dynamic=True)
    def write_and_sum(k, tokens):
        k[: tokens.shape[0]].add_(tokens[:, None, None])
        return k[: tokens.shape[0], 0, 0].sum()

    for length in (300, 500, 1000):
        before = request_k[:length, 0, 0].sum()
        assert write_and_sum(request_k, torch.ones(length, device="cuda")) == before + length
    assert request_k[0, 7, 127].item() == 3.0
