# SPDX-License-Identifier: Apache-2.0
"""Windows in rings on a GPU: kernels as they are, prompts in pieces, decoding in CUDA graphs."""

# ruff: noqa: E402
from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from nvidia_drivers import require

from pyvattn import CacheSpec, KVCache, LayerGroup
from pyvattn.attention import Feature, append, attend, kernel_infos
from pyvattn.attention.registry import _KERNELS

WINDOW, ROWS, HEADS, DIM = 1024, 3, 4, 128
DRIVERS = ["cumem", "stock-uvm", "patched"]
KERNELS = [
    info.name
    for info in kernel_infos()
    if info.unavailable is None
    and _KERNELS[info.name].capturable
    and {Feature.WINDOW, Feature.STARTS} <= _KERNELS[info.name].features
] or ["none"]


def windowed(q, k, v, length):
    """Attention of a row's last queries over all its tokens, in float64."""
    count, keys, values = len(q), k[:length].double(), v[:length].double()
    keys, values = (x.repeat_interleave(q.shape[1] // HEADS, dim=1) for x in (keys, values))
    scores = torch.einsum("qhd,khd->hqk", q.double(), keys) * DIM**-0.5
    at = torch.arange(length - count, length, device=q.device)[:, None]
    seen = torch.arange(length, device=q.device)[None]
    scores = scores.masked_fill((seen > at) | (seen <= at - WINDOW), -torch.inf)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), values)


class Model:
    """Requests whose K and V are kept beside the cache."""

    def __init__(self, driver, kernel):
        require(driver)
        group = LayerGroup([0], HEADS, DIM, window=WINDOW, ring=True)
        spec = CacheSpec(
            groups=[group],
            dtype="bfloat16",
            max_slots=ROWS + 1,
            max_tokens=16384,
            guard_tokens=_KERNELS[kernel].guard_tokens,
        )
        self.kernel = kernel
        self.cache = KVCache(spec, device="cuda", driver=driver, layout="layer", memory="256MiB")
        self.slots = [self.cache.acquire(0) for _ in range(ROWS)]
        self.rows = torch.tensor([slot.index for slot in self.slots], device="cuda")
        torch.manual_seed(0)
        shape = (ROWS, 12000, HEADS, DIM)
        self.k, self.v = (torch.randn(shape, device="cuda").bfloat16() for _ in range(2))

    def prefill(self, tokens):
        """Fill every row in pieces, and compare what each piece sees."""
        self.cache.step(dict.fromkeys(self.slots, tokens))
        for piece in torch.arange(tokens, device="cuda").split(self.cache.chunk_tokens):
            new = self.k[:, piece], self.v[:, piece]
            append(self.cache, 0, self.rows[:, None], piece[None], *new)
            q = torch.randn((ROWS, len(piece), 2 * HEADS, DIM), device="cuda").bfloat16()
            end = int(piece[-1]) + 1
            out = attend(q, self.cache, 0, self.rows, [end] * ROWS, kernel=self.kernel)
            for row in range(ROWS):
                expected = windowed(q[row], self.k[row], self.v[row], end)
                torch.testing.assert_close(out[row].double(), expected, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_ring_gives_what_all_tokens_give(driver, kernel):
    model = Model(driver, kernel)
    with model.cache:
        model.prefill(7000)


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_one_graph_decodes_round_the_ring(driver, kernel):
    model = Model(driver, kernel)
    cache = model.cache
    with cache:
        model.prefill(3000)
        length = torch.full((ROWS,), 3000, device="cuda")
        q = torch.randn((ROWS, 1, 2 * HEADS, DIM), device="cuda").bfloat16()
        batch = torch.arange(ROWS, device="cuda")

        def decode():
            new = model.k[batch, length], model.v[batch, length]
            append(cache, 0, model.rows, length, *new)
            length.add_(1)
            return attend(q, cache, 0, model.rows, length, kernel=kernel)

        cache.step(dict.fromkeys(model.slots, 3001))
        decode()
        length.fill_(3000)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = decode()
        length.fill_(3000)
        cache.drain()
        before = cache.stats()
        for end in range(3001, 3001 + 5 * WINDOW):
            cache.step(dict.fromkeys(model.slots, end))
            graph.replay()
            if end % 97 and end % cache.geometry.ring_tokens > 3:
                continue
            for row in range(ROWS):
                expected = windowed(q[row], model.k[row], model.v[row], end)
                torch.testing.assert_close(out[row].double(), expected, atol=2e-2, rtol=2e-2)
        after = cache.stats()
        assert (after.map_calls, after.unmap_calls) == (before.map_calls, before.unmap_calls)
