# SPDX-License-Identifier: Apache-2.0
"""Bad arguments: an error of ours, in one line, that names the value and what to use."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest

import pyvattn
from pyvattn import (
    ArgumentError,
    CacheSpec,
    ConfigError,
    CopyError,
    Error,
    KVCache,
    LengthError,
    SlotError,
    SpecError,
    _native,
)
from pyvattn.planner import plan
from pyvattn.traces import read_trace, synthetic_trace

SPEC = CacheSpec(2, 4, 64, "float32", max_slots=4, max_tokens=1024)
LINES = np.zeros((40, 40))


def opened(**changes):
    return KVCache(SPEC, **{"device": "cpu", "memory": "16MiB", "layout": "layer", **changes})


@pytest.fixture
def cache():
    with opened() as cache:
        yield cache


OPENING = {
    "memory": [2**64, 1e9, None, LINES, -1, "1e9", 10**5000],
    "page_size": [None, 65536.0, LINES, 2**70],
    "read_ahead": [True, 1.5, None, LINES],
    "layers_per_arena": [2, "1", LINES],
    "layout": [3, None, LINES],
    "driver": [3, None, "", "a\nb", LINES],
    "device": [None, "cuda:99999999999999999999", "cpu\n", 0],
    "background": ["no", LINES, None, 1],
    "accounting": ["no", LINES, None, 1],
    "strict": ["no", LINES, None, 1],
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param(name, value, id=f"{name}-{i}")
        for name, values in OPENING.items()
        for i, value in enumerate(values)
    ],
)
def test_a_cache_is_not_opened_with_it(name, value):
    with pytest.raises(ConfigError) as caught:
        opened(**{name: value})
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


def test_what_is_no_spec_and_no_driver():
    with pytest.raises(ArgumentError, match=r"spec=\{\}: pass a CacheSpec"):
        KVCache({}, device="cpu", memory="1GiB")
    with pytest.raises(ArgumentError, match="driver='host': pass a Driver"):
        KVCache.on_driver(SPEC, "host", layout="layer", memory="1GiB")


CALLS = {
    "acquire": (LengthError, lambda cache, slot: cache.acquire(2.5)),
    "can_admit": (LengthError, lambda cache, slot: cache.can_admit("2")),
    "step, a number": (ArgumentError, lambda cache, slot: cache.step(5)),
    "step, none": (ArgumentError, lambda cache, slot: cache.step(None)),
    "step, pairs": (ArgumentError, lambda cache, slot: cache.step([(slot, 1)])),
    "step, an array": (ArgumentError, lambda cache, slot: cache.step(LINES)),
    "prefetch": (ArgumentError, lambda cache, slot: cache.prefetch(5)),
    "step_array": (ArgumentError, lambda cache, slot: cache.step_array([0], [5])),
    "release": (SlotError, lambda cache, slot: cache.release(LINES)),
    "after": (ConfigError, lambda cache, slot: cache.release(slot, after=LINES)),
    "after, a number": (ConfigError, lambda cache, slot: cache.release(slot, after=2**70)),
    "after, negative": (ConfigError, lambda cache, slot: cache.release(slot, after=-1)),
    "length": (SlotError, lambda cache, slot: cache.length(slot.index)),
    "resize": (ConfigError, lambda cache, slot: cache.resize(2**64)),
    "layer": (ArgumentError, lambda cache, slot: cache.layer("0")),
    "close": (ConfigError, lambda cache, slot: cache.close(after="x")),
    "copy": (CopyError, lambda cache, slot: copy.copy(cache)),
    "deepcopy": (CopyError, lambda cache, slot: copy.deepcopy(cache)),
    "pickle": (CopyError, lambda cache, slot: pickle.dumps(cache)),
    "copy a slot": (CopyError, lambda cache, slot: copy.copy(slot)),
    "deepcopy a slot": (CopyError, lambda cache, slot: copy.deepcopy({slot: 1})),
    "pickle a slot": (CopyError, lambda cache, slot: pickle.dumps([slot])),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_refuses_it_and_changes_nothing(cache, name):
    error, call = CALLS[name]
    slot = cache.acquire()
    cache.step({slot: 5})
    with pytest.raises(error) as caught:
        call(cache, slot)
    assert isinstance(caught.value, pyvattn.Error)
    assert isinstance(caught.value, TypeError | ValueError)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300
    assert cache.live_slots() == {slot: 5}


@pytest.mark.parametrize("kind", [np.int32, np.int64, np.uint64])
def test_the_integers_of_numpy_are_integers(kind):
    spec = CacheSpec(
        kind(2), kind(4), kind(64), "float32", max_slots=kind(4), max_tokens=kind(1024)
    )
    assert spec == SPEC
    assert spec.shard(kind(2)).kv_heads == 2
    with opened(
        memory=kind(1 << 24),
        page_size=kind(65536),
        read_ahead=kind(64),
        layout="token",
        layers_per_arena=kind(1),
    ) as cache:
        slot = cache.acquire(kind(5))
        cache.step({slot: kind(5)})
        assert cache.resize(kind(1 << 23)) > 0
        assert cache.can_admit(kind(1))


@pytest.mark.parametrize(
    "make",
    [
        lambda: CacheSpec.mla(layers=1, latent_dim="x"),
        lambda: CacheSpec.mla(layers=1, rope_dim=None),
        lambda: CacheSpec.mla(layers=1, heads=3),
        lambda: SPEC.shard(1.5),
        lambda: replace(SPEC, kind=LINES),
        lambda: CacheSpec.from_hf_config(None),
        lambda: CacheSpec.from_hf_config(3),
        lambda: CacheSpec.from_hf_config(b"config.json"),
    ],
)
def test_impossible_specs_are_refused(make):
    with pytest.raises(SpecError):
        make()


class TestTheLimitOfAddresses:
    """64 TiB, one constant: what a spec may ask for, the core serves."""

    def test_is_the_cores(self):
        assert _native.MAX_VIRTUAL_BYTES == 64 << 40

    def test_a_spec_of_just_that_much_opens(self):
        spec = CacheSpec(16, 1, 128, "float16", max_slots=2**16, max_tokens=2**17 - 192)
        assert spec.max_slots * 2**17 * spec.token_bytes == 64 << 40
        with KVCache(
            spec, device="cpu", memory="16MiB", page_size="64K", layout="token", accounting=True
        ) as cache:
            assert cache.stats().bytes_reserved == 64 << 40
        with pytest.raises(SpecError, match=r"64\.0 TiB of addresses, more than 64\.0 TiB"):
            CacheSpec(16, 1, 128, "float16", max_slots=2**16 + 1, max_tokens=2**17 - 192)

    # Rows of one token each take a page in every arena.
    SPARSE = CacheSpec(2, 1, 64, max_slots=2**24, max_tokens=1, guard_tokens=0)

    def test_whole_pages_count(self):
        with pytest.raises(SpecError, match=r"whole pages of 64M.*smaller pages"):
            self.SPARSE.geometry("layer", "64M")

    def test_a_plan_passes_over_pages_that_are_too_large(self):
        tried = plan(self.SPARSE, driver="stock-uvm").candidates
        assert tried
        assert all(c.arenas * c.page_size * 2**24 <= 64 << 40 for c in tried)
        with pytest.raises(SpecError, match="smaller pages"):
            plan(replace(self.SPARSE, max_slots=2**26), driver="stock-uvm", page_size="2M")


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: plan(3, driver="host"), "spec=3"),
        (lambda: plan(SPEC, driver="host", growth_pages=3), "growth_pages=3"),
        (lambda: plan(SPEC, driver="host", workload=3), "workload=3"),
        (lambda: read_trace(None), "path=None"),
        (lambda: read_trace([]), r"path=\[\]"),
        (lambda: synthetic_trace("x"), "a trace of 'x' requests"),
        (lambda: synthetic_trace(2.5), "a trace of 2.5 requests"),
        (lambda: synthetic_trace(3, seed=10**5000), "seed=.*: use a whole number from 0 to 2"),
        (lambda: synthetic_trace(3, seed=-1), "seed=-1: use a whole number"),
        (lambda: synthetic_trace(3, seed="x"), "seed='x': use a whole number"),
        (lambda: synthetic_trace(3, rate="x"), "rate 'x'"),
    ],
)
def test_plans_and_traces_name_an_argument_of_another_type(call, named):
    with pytest.raises(Error, match=named):
        call()
