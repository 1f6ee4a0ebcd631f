"""What ``bench attention`` compares with."""

# ruff: noqa: E402
from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from pyvattn import CacheSpec, KVCache
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
        for mapped, copied, expected in zip(ours, copies, layers, strict=True):
            for a, b, c in zip(mapped, copied, expected, strict=True):
                assert a.stride() == b.stride()
                assert torch.equal(b, c)


@pytest.mark.parametrize(("gib", "rows"), [(139, 32), (80, 19), (24, 5)])
def test_a_smaller_card_gets_fewer_rows(gib, rows):
    """A row of 4,096 tokens and the guard of Llama-3-8B is 536 MiB, in seven copies 3.66 GiB."""
    fitting = attention._that_fits(card(gib << 30), attention.Options(), attention.SHAPES[0])
    assert (fitting.rows, fitting.name) == (rows, f"decode, {rows} x 4,096 tokens")


def test_a_card_without_room_for_a_row_is_refused():
    with pytest.raises(DriverUnavailable, match="fewer --layers"):
        attention._that_fits(card(1 << 30), attention.Options(), attention.SHAPES[0])


def card(free):
    class Torch:
        class cuda:
            mem_get_info = staticmethod(lambda _device: (free, 1 << 40))

    return Torch
