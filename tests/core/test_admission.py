# SPDX-License-Identifier: Apache-2.0
"""Admission in one call, steps that do not wait, trimmed slots, and the strict mode."""

from __future__ import annotations

import numpy as np
import pytest
from checked_cache import small_spec

from pyvattn import ConfigError, DriverError, KVCache, LengthError, OutOfMemory, OutOfSlots, _native
from pyvattn._native import emulated_cuda as gpu


def test_admission_acquires_and_backs(open_bench, driver_name):
    bench = open_bench(name=driver_name)
    slot = bench.cache.admit(100)
    assert bench.cache.length(slot) == 100
    assert bench.check_books().pages_live > 0
    bench.arrays()[0][slot, :100] = 1
    bench.cache.step({slot: 101})


def test_admission_is_whole_or_not_at_all(open_bench):
    bench = open_bench(pages=32)
    slots = [bench.cache.admit(256)]
    before = bench.state()
    with pytest.raises(OutOfMemory):
        bench.cache.admit(512)
    assert bench.state() == before
    bench.faults.fail_nth(0)
    with pytest.raises(DriverError):
        bench.cache.admit(200)
    bench.faults.disarm()
    assert bench.state() == before
    slots += [bench.cache.admit(0) for _ in range(3)]
    with pytest.raises(OutOfSlots):
        bench.cache.admit(0)
    with pytest.raises(LengthError):
        bench.cache.admit(1025)


def test_a_trimmed_slot_gives_its_pages_back(open_bench, driver_name):
    bench = open_bench(
        name=driver_name, pages=1024, spec=small_spec(guard_tokens=0, max_tokens=8192)
    )
    slot = bench.cache.admit(8192)
    keys = bench.arrays()[0]
    keys[slot, :8192] = 7
    bench.cache.trim(slot, 10)
    s = bench.check_books()
    assert s.pages_live == s.pages_mapped == 4
    assert bench.cache.live_pages() == {slot: 4}
    assert bench.cache.length(slot) == 10
    assert (keys[slot, :10] == 7).all()
    other = bench.cache.admit(8192)
    assert not keys[other, :8192].any()
    bench.cache.step({slot: 8192})
    assert not keys[slot, bench.page // 1024 : 8192].any()


def test_a_trimmed_slot_can_be_trimmed_to_nothing_and_used_again(open_bench):
    bench = open_bench()
    slot = bench.cache.admit(300)
    with pytest.raises(LengthError, match="cannot be shortened to 301"):
        bench.cache.trim(slot, 301)
    bench.cache.trim(slot, 0)
    assert bench.check_books().pages_mapped == 0
    bench.cache.step({slot: 300})
    assert not bench.arrays()[0][slot, :300].any()


@pytest.mark.parametrize("nth", [0, 1])
def test_a_trim_that_fails_keeps_the_pages(open_bench, nth):
    bench = open_bench()
    slot = bench.cache.admit(300)
    bench.arrays()[0][slot, :300] = 7
    bench.faults.fail_nth(nth)
    with pytest.raises(DriverError):
        bench.cache.trim(slot, 1)
    bench.check_books()
    assert bench.cache.length(slot) == 1
    bench.cache.trim(slot, 1)
    assert bench.check_books().pages_mapped == 4
    bench.cache.step({slot: 300})
    assert not bench.arrays()[0][slot, 64:300].any()


def test_a_step_says_that_it_would_have_to_wait_for_zeroing():
    gpu.reset()
    spec = small_spec(max_tokens=8192, guard_tokens=0)
    page = 2 << 20
    driver = _native.make_driver("cumem-emulated", page)
    with KVCache.on_driver(
        spec, driver, layout="layer", memory=8 * page, background=False
    ) as cache:
        old = cache.admit(4096)
        stream = gpu.make_stream(0)
        address = cache.layer(0, np.from_dlpack)[0][old, :1].__array_interface__["data"][0]
        kernel = gpu.launch_kernel(0, stream, address, 4)
        cache.release(old, after=stream)
        new = cache.acquire(0)
        assert cache.try_step({new: 0}) is True
        before = cache.stats()
        assert cache.try_step({new: 4096}) is False
        assert cache.stats().pages_quarantined == before.pages_quarantined == 8
        assert cache.length(new) == 0
        gpu.release_kernel(kernel)
        _native.stream_fence("cumem-emulated", 0, gpu.make_stream(0)).wait()
        cache.step({new: 4096})
        with pytest.raises(OutOfMemory):
            cache.try_step({new: 8192})


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_strict_poisons_what_lies_past_a_length(dtype):
    spec = small_spec(dtype=dtype)
    options = {"layout": "layer", "page_size": "64K", "memory": "64MiB"}
    with KVCache(spec, device="cpu", strict=True, **options) as cache:
        keys, values = cache.layer(1, np.from_dlpack)
        slot = cache.admit(10)
        keys[slot, :10], values[slot, :10] = 1, 1
        assert np.isnan(keys[slot, 10:32]).all()
        cache.step({slot: 20})
        assert (keys[slot, :10] == 1).all()
        assert np.isnan(values[slot, 10:20]).all(), "never written"
        keys[slot, 10:20] = 2
        cache.step({slot: 5})
        assert (keys[slot, :5] == 1).all()
        assert np.isnan(keys[slot, 5:32]).all()
        cache.release(slot)
        cache.drain()
        assert cache.stats().pages_quarantined == 0
        again = cache.admit(3)
        assert np.isnan(keys[again, :32]).all()


@pytest.mark.parametrize("options", [{"accounting": True}, {"strict": 1}])
def test_strict_is_for_memory_that_the_cpu_reaches(options):
    with pytest.raises(ConfigError, match="strict"):
        KVCache(small_spec(), device="cpu", memory="64MiB", **{"strict": True, **options})
