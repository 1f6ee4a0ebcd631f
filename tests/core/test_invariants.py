# SPDX-License-Identifier: Apache-2.0
"""The invariants of the design, each attacked on purpose."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from checked_cache import small_spec

from pyvattn import ClosedError


def test_1_what_step_returned_for_is_mapped(open_bench, driver_name):
    bench = open_bench(name=driver_name)
    slot = bench.cache.acquire()
    for length in range(0, 1025, 37):
        bench.cache.step({slot: length})
        needed = 4 * -(-length * 1024 // bench.page) * bench.page
        assert bench.checked.mapped_bytes >= needed


@pytest.mark.parametrize("length", [1, 64, 65, 1000, 1024])
def test_2_the_guard_past_the_length_is_finite(open_bench, driver_name, length):
    """Also at the end of a row, and after another request left NaN everywhere."""
    bench = open_bench(name=driver_name, pages=384)  # enough for private guards
    full = [bench.cache.acquire() for _ in range(4)]
    bench.cache.step(dict.fromkeys(full, 1024))
    for layer in range(2):
        for tensor in bench.arrays(layer):
            tensor[:] = np.nan
    for slot in full:
        bench.cache.release(slot)
    slot = bench.cache.acquire()
    bench.cache.step({slot: length})
    for layer in range(2):
        for tensor in bench.arrays(layer):
            row = guarded_row(tensor, slot.index, length + bench.cache.spec.guard_tokens)
            row[:length] = 1
            assert np.isfinite(row).all()


def guarded_row(tensor, row, tokens):
    """``tokens`` tokens of a row, also past max_tokens: what a kernel may read."""
    return np.lib.stride_tricks.as_strided(
        tensor[row], (tokens, *tensor.shape[2:]), tensor.strides[1:]
    )


def test_2_the_shared_guard_costs_no_private_memory(open_bench):
    bench = open_bench(name="host")
    slot = bench.cache.acquire()
    bench.cache.step({slot: 64})
    assert bench.checked.mapped_bytes == 4 * bench.page


def test_2_the_guard_cannot_be_written(tmp_path):
    """It is shared: a stray write must not reach other rows."""
    import signal
    import subprocess
    import sys

    program = (
        "import numpy, pyvattn\n"
        "spec = pyvattn.CacheSpec(1, 1, 64, 'float32', max_slots=1, max_tokens=1024)\n"
        "cache = pyvattn.KVCache(spec, device='cpu', layout='layer', memory='1MiB')\n"
        "cache.layer(0, numpy.from_dlpack)[0][0, 1000] = 1\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGSEGV


@pytest.mark.parametrize("background", [False, True])
def test_3_a_recycled_page_holds_zeros(open_bench, driver_name, background):
    bench = open_bench(name=driver_name, background=background)
    secret = bench.cache.acquire()
    bench.cache.step({secret: 700})
    for layer in range(2):
        for tensor in bench.arrays(layer):
            tensor[secret, :700] = 7
    bench.cache.release(secret)
    bench.cache.drain()
    slot = bench.cache.acquire(700)
    assert slot.index == secret.index
    bench.cache.step({slot: 1000})
    for layer in range(2):
        for tensor in bench.arrays(layer):
            assert not tensor[slot, :1000].any()


def test_3_a_page_taken_from_a_released_slot_holds_zeros(open_bench):
    bench = open_bench(pages=64)
    secret = bench.cache.acquire()
    bench.cache.step({secret: 1024})
    for layer in range(2):
        for tensor in bench.arrays(layer):
            tensor[secret, :1024] = 7
    bench.cache.release(secret)
    for slot in (bench.cache.acquire(), bench.cache.acquire()):
        bench.cache.step({slot: 500})
        for layer in range(2):
            for tensor in bench.arrays(layer):
                assert not tensor[slot, :500].any()


def test_3_tokens_past_a_shortened_length_are_cleared_too(open_bench):
    """The longest length counts, not the last."""
    bench = open_bench()
    secret = bench.cache.acquire()
    bench.cache.step({secret: 700})
    bench.arrays()[0][secret, :700] = 7
    bench.cache.step({secret: 1})
    bench.cache.release(secret)
    slot = bench.cache.acquire(700)
    bench.cache.step({slot: 700})
    assert not bench.arrays()[0][slot, :700].any()


def test_5_free_mapped_and_quarantined_pages_are_all_pages(open_bench, driver_name):
    bench = open_bench(name=driver_name, pages=64)
    rng = np.random.default_rng(5)
    live = []
    for _ in range(300):
        if live and rng.random() < 0.4:
            bench.cache.release(live.pop(rng.integers(len(live))))
        elif len(live) < 4 and bench.cache.can_admit(200):
            live.append(bench.cache.acquire(200))
            bench.cache.step({live[-1]: 200})
        bench.check_books()


def test_5_a_closed_cache_has_given_all_of_it_back(open_bench, driver_name):
    bench = open_bench(name=driver_name)
    tensors = [t for layer in range(2) for t in bench.arrays(layer)]
    bench.cache.step({bench.cache.acquire(): 100 for _ in range(3)})
    bench.cache.close()
    s = bench.cache.stats()
    assert (s.pages_allocated, s.pages_mapped, s.slabs) == (0, 0, 0)
    assert bench.checked.mapped_bytes == 0
    assert bench.checked.live_slabs == 0
    assert bench.checked.live_reservations == 4, "tensors still name the addresses"
    del tensors
    gc.collect()
    assert bench.checked.live_reservations == 0


def test_5_what_is_not_closed_is_named():
    from pyvattn import KVCache

    cache = KVCache(small_spec(), device="cpu", memory="1MiB")
    cache.step({cache.acquire(): 10})
    caches = [cache]
    del cache
    with pytest.warns(ResourceWarning, match=r"KVCache 2 layers.*was not closed and held"):
        caches.clear()


def test_use_after_close(open_bench):
    bench = open_bench()
    slot = bench.cache.acquire()
    bench.cache.close()
    bench.cache.close()
    for call in (
        lambda: bench.cache.acquire(),
        lambda: bench.cache.step({slot: 1}),
        lambda: bench.cache.step({}),
        lambda: bench.cache.prefetch({slot: 1}),
        lambda: bench.cache.release(slot),
        lambda: bench.cache.can_admit(1),
        lambda: bench.cache.resize("1MiB"),
        lambda: bench.cache.layer(0, np.from_dlpack),
    ):
        with pytest.raises(ClosedError, match="open a new one"):
            call()
