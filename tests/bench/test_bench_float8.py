# SPDX-License-Identifier: Apache-2.0
"""What ``bench float8`` compares."""

# ruff: noqa: E402
from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from pyvattn import CacheSpec, KVCache
from pyvattn.attention import scales_of
from pyvattn.attention.quantise import dequantised
from pyvattn.bench import float8
from pyvattn.bench.attention import Shape
from pyvattn.errors import DriverUnavailable

LAYERS, ROWS, TOKENS = 2, 3, 40


@pytest.fixture
def caches():
    opened = {
        dtype: KVCache(
            CacheSpec(LAYERS, 2, 16, dtype=dtype, max_slots=ROWS, max_tokens=TOKENS),
            device="cpu",
            memory="16MiB",
        )
        for dtype in ("bfloat16", "float8_e4m3fn")
    }
    slots = {dtype: [cache.acquire(TOKENS) for _ in range(ROWS)] for dtype, cache in opened.items()}
    for dtype, cache in opened.items():
        cache.step(dict.fromkeys(slots[dtype], TOKENS))
    yield opened["bfloat16"], opened["float8_e4m3fn"]
    for dtype, cache in opened.items():
        for slot in slots[dtype]:
            cache.release(slot)
        cache.close()


def test_both_caches_hold_the_same_values(caches):
    wide, small = caches
    float8._fill(torch, wide, small)
    for layer in range(LAYERS):
        scales = scales_of(small).of(layer)
        for whole, few, scale in zip(wide.layer(layer), small.layer(layer), scales, strict=True):
            wanted = whole[:, :TOKENS].float()
            found = dequantised(few[:, :TOKENS], scale, torch.float32)
            # Three bits of mantissa: a sixteenth of the value, and less than a step near zero.
            torch.testing.assert_close(found, wanted, rtol=1 / 16, atol=0.01)
            assert wanted.std() > 0.9


def test_the_blocks_hold_what_the_rows_do(caches):
    float8._fill(torch, *caches)
    rows = [caches[1].layer(layer) for layer in range(LAYERS)]
    table, blocks = float8._blocks(torch, rows, TOKENS)
    assert table.shape == (ROWS, 3)
    for pair, cut in zip(rows, blocks, strict=True):
        for of_row, of_blocks in zip(pair, cut, strict=True):
            assert of_blocks.dtype == torch.float8_e4m3fn
            found = of_blocks.view(torch.uint8)[table.long()].flatten(1, 2)[:, :TOKENS]
            assert torch.equal(found, of_row[:, :TOKENS].contiguous().view(torch.uint8))


def test_a_gain_is_how_much_longer_the_slower_one_takes():
    times = {"ours, bfloat16": 3.0, "ours, float8": 2.0}
    times |= {"ours, float8, the kernel alone": 1.0, "paged, float8, 16 tokens": 1.25}
    seconds = {name: [value] * 7 for name, value in times.items()}
    found = list(float8.report(Shape("decode", 2, 64, 1), seconds, "note"))
    assert [(each.value, each.at_least) for each in found[4:]] == [(1.5, 1.5), (1.25, 1.08)]
    assert [each.value for each in found[:4]] == [value * 1e3 for value in times.values()]
    prompt = list(float8.report(Shape("prefill", 1, 64, 64), seconds, "note"))
    assert [each.at_least for each in prompt[4:]] == [1.2, 1.28]


def test_a_card_without_room_is_refused():
    class Torch:
        class cuda:
            mem_get_info = staticmethod(lambda _device: (1 << 30, 1 << 40))

    with pytest.raises(DriverUnavailable, match="fewer --layers"):
        float8._require_memory(Torch, float8.Options(), float8.SHAPES[0])
