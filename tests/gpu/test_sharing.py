# SPDX-License-Identifier: Apache-2.0
"""Pages at two addresses on a GPU: forks, common prompts, trimmed fronts."""

# ruff: noqa: E402
from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from pyvattn import CacheSpec, KVCache
from pyvattn.attention import attend
from pyvattn.prefix import PrefixIndex

SPEC = CacheSpec(2, 8, 128, "bfloat16", max_slots=4, max_tokens=16384)


@pytest.fixture(params=["cumem", "stock-uvm"])
def cache(request):
    with KVCache(
        SPEC, device="cuda", driver=request.param, layout="layer", memory="2GiB"
    ) as opened:
        yield opened


def fill(cache, slot, begin, end):
    torch.manual_seed(begin)
    for layer in range(SPEC.layers):
        for tensor in cache.layer(layer):
            new = torch.randn(end - begin, 8, 128, device="cuda", dtype=torch.bfloat16)
            tensor[int(slot), begin:end] = new


def attended(cache, slot, length):
    torch.manual_seed(1)
    q = torch.randn(1, 1, 8, 128, device="cuda", dtype=torch.bfloat16)
    return attend(q, cache, 1, [int(slot)], [length], causal=True)


def test_kernels_read_a_fork_as_they_read_its_source(cache):
    slot = cache.admit(10000)
    fill(cache, slot, 0, 10000)
    before = attended(cache, slot, 10000)
    fork = cache.fork(slot)
    assert torch.equal(attended(cache, fork, 10000), before)
    cache.step({fork: 10001})
    fill(cache, fork, 10000, 10001)
    assert torch.equal(attended(cache, slot, 10000), before)
    cache.release(slot)
    cache.drain()
    assert torch.equal(attended(cache, fork, 10000), before)
    cache.release(fork)


def test_a_common_prompt_is_read_where_it_was_computed(cache):
    index = PrefixIndex(cache)
    prompt = list(range(9000))
    slot, _ = index.admit(prompt)
    fill(cache, slot, 0, 9000)
    index.publish(slot, prompt)
    other, hit = index.admit([*prompt[:8500], 1, 2])
    assert hit >= 4096
    for layer in range(SPEC.layers):
        for tensor in cache.layer(layer):
            assert torch.equal(tensor[int(other), :hit], tensor[int(slot), :hit])
    index.release(other)
    index.release(slot)
    index.close()


def test_a_front_goes_behind_the_kernels_that_read_it(cache):
    slot = cache.admit(16000)
    fill(cache, slot, 0, 16000)
    pages = cache.live_pages()[slot]
    expected = cache.layer(0)[0][int(slot), :16000].clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        seen = cache.layer(0)[0][int(slot), :16000].clone()
        cache.trim(slot, front=8192)
    stream.synchronize()
    cache.drain()
    assert torch.equal(seen, expected)
    cache.step({slot: 16001})
    assert torch.equal(cache.layer(0)[0][int(slot), 8192:16000], expected[8192:])
    assert cache.live_pages()[slot] < pages
    cache.release(slot)
