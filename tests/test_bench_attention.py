"""What ``bench attention`` compares with."""

# ruff: noqa: E402
from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from pyvattn import CacheSpec, KVCache
from pyvattn.bench import attention


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
        for mapped, copied, expected in zip(ours, copies, layers, strict=True):
            for a, b, c in zip(mapped, copied, expected, strict=True):
                assert a.stride() == b.stride()
                assert torch.equal(b, c)
