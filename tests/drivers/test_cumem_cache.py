# SPDX-License-Identifier: Apache-2.0
"""A whole KVCache on the emulated libcuda: faults, fences, contexts, leaks."""

from __future__ import annotations

import gc

import pytest

from pyvattn import CacheSpec, KVCache, OutOfMemory, _native
from pyvattn._native import emulated_cuda as gpu
from pyvattn.errors import ConfigError, DriverError
from pyvattn.fences import fence_after

np = pytest.importorskip("numpy")

DRIVER = "cumem-emulated"
PAGE = 2 << 20
SPEC = CacheSpec(layers=2, kv_heads=2, head_dim=64, dtype="float32", max_slots=4, max_tokens=8192)
LAUNCH_FAILED = 719


@pytest.fixture(autouse=True)
def _fresh_gpu():
    gpu.reset()
    yield
    gc.collect()
    assert gpu.violations() == []
    held = gpu.holdings()
    assert (held.reservations, held.allocations, held.mappings) == (0, 0, 0)
    assert (held.streams, held.events, held.contexts) == (0, 0, 0)


def open_cache(layout: str = "layer", memory: str = "256MiB", background: bool = False) -> KVCache:
    return KVCache(
        SPEC, device="cpu", driver=DRIVER, layout=layout, memory=memory, background=background
    )


def keys(cache: KVCache, slot, tokens: int):
    k, _ = cache.layer(0, from_dlpack=np.from_dlpack)
    return k[slot.index, :tokens]


def snapshot(cache: KVCache) -> tuple[int, ...]:
    stats, held = cache.stats(), gpu.holdings()
    return (stats.pages_mapped, stats.slots_live, stats.bytes_used, held.mappings)


@pytest.mark.parametrize("layout", ["layer", "token"])
def test_tokens_and_the_guard_are_backed_and_zero(layout):
    with open_cache(layout) as cache:
        slot = cache.acquire(3000)
        cache.step({slot: 3000})
        assert not keys(cache, slot, 3000 + SPEC.guard_tokens).any()
        keys(cache, slot, 3000)[:] = 1.0
        cache.step({slot: 6000})
        assert keys(cache, slot, 3000).all()
        assert not keys(cache, slot, 6000)[3000:].any()


@pytest.mark.parametrize("layout", ["layer", "token"])
@pytest.mark.parametrize(("source", "target"), [(0, 1), (1, 0)])
def test_a_copy_from_the_other_device_reaches_tokens_and_guard(layout, source, target):
    """torch copies with a kernel of the source's device, straight onto the target's memory."""
    driver = _native.make_driver(DRIVER, PAGE, target, True)
    with KVCache.on_driver(SPEC, driver, layout=layout, memory="256MiB") as cache:
        slot = cache.acquire(100)
        for length in (100, 8000):  # what is mapped later is reached as well
            cache.step({slot: length})
            row = keys(cache, slot, length + SPEC.guard_tokens)
            steps = zip(row.shape, row.strides, strict=True)
            size = row.itemsize + sum((n - 1) * stride for n, stride in steps)
            kernel = gpu.launch_kernel(source, 0, row.ctypes.data, size)
            gpu.release_kernel(kernel)
            _native.stream_fence(DRIVER, source, 0).wait()  # raises what the kernel did wrong
    del driver


@pytest.mark.parametrize(("access", "peers"), [(True, ("cuda:1",)), (False, ())])
def test_a_cache_tells_which_devices_may_copy_into_it(access, peers):
    options = {"driver": DRIVER, "layout": "layer", "memory": "64MiB", "peer_access": access}
    with KVCache(SPEC, device="cpu", **options) as cache:
        assert (cache.device, cache.peers) == ("cpu", peers)


def test_a_steps_pages_cost_one_set_access_for_each_arena():
    with open_cache() as cache:
        slot = cache.acquire(8192)
        maps, opens = gpu.calls("cuMemMap"), gpu.calls("cuMemSetAccess")
        cache.step({slot: 8192})
        assert gpu.calls("cuMemMap") - maps == 4 * 3  # arenas times 2 MiB pages, guard included
        assert gpu.calls("cuMemSetAccess") - opens == 4


def test_pages_of_a_released_slot_serve_the_next_request_without_driver_calls():
    with open_cache() as cache:
        first = cache.acquire(8000)
        cache.step({first: 8000})
        cache.release(first)
        counted = {f: gpu.calls(f) for f in ("cuMemCreate", "cuMemMap", "cuMemSetAccess")}
        second = cache.acquire(8000)
        cache.step({second: 8000})
        assert {f: gpu.calls(f) for f in counted} == counted
        assert not keys(cache, second, 8000).any()


def test_memory_goes_back_to_the_device_when_the_limit_shrinks():
    with open_cache() as cache:
        slot = cache.acquire(8100)
        cache.step({slot: 8100})
        cache.release(slot)
        assert gpu.holdings().allocations == 12
        cache.resize(4 * PAGE)
        assert gpu.holdings().allocations <= 4
        cache.resize("64MiB")
        cache.step({cache.acquire(8100): 8100})


# --- failures ---

FAILING = [
    "cuMemCreate",
    "cuMemMap",
    "cuMemSetAccess",
    "cuMemsetD8Async",
    "cuEventCreate",
    "cuEventRecord",
    "cuEventSynchronize",
]


@pytest.mark.parametrize("function", FAILING)
def test_whichever_call_of_a_step_fails_the_cache_is_as_before(function):
    failures = 0
    while fail_in_a_step(function, failures + 1):
        failures += 1
        gpu.reset()
    assert failures > 0, f"a step makes no {function}"


def fail_in_a_step(function: str, nth: int) -> bool:
    """Run a step whose nth call of a function fails; return whether there was such a call."""
    with open_cache() as cache:
        first = cache.acquire(100)
        cache.step({first: 100})
        second = cache.acquire(5000)
        before, made = snapshot(cache), gpu.calls(function)
        gpu.fail(function, nth, LAUNCH_FAILED)
        try:
            cache.step({first: 5000, second: 5000})
        except DriverError as error:
            status = error.status
        else:
            assert gpu.calls(function) - made < nth, "the failure was swallowed"
            return False
        assert status == "CUDA_ERROR_LAUNCH_FAILED"
        assert snapshot(cache) == before
        cache.step({first: 5000, second: 5000})
        assert not keys(cache, second, 5000).any()
        return True


@pytest.mark.parametrize("function", ["cuMemUnmap", "cuMemMap", "cuMemSetAccess"])
def test_whichever_call_of_reclaiming_fails_the_cache_still_works(function):
    failures = 0
    while fail_in_reclaiming(function, failures + 1):
        failures += 1
        gpu.reset()
    assert failures > 0, f"reclaiming makes no {function}"


def fail_in_reclaiming(function: str, nth: int) -> bool:
    """Grow a slot into the pages of a released one while the nth call of a function fails."""
    with open_cache(memory=f"{16 * PAGE}") as cache:
        live, released = cache.acquire(5000), cache.acquire(5000)
        cache.step({live: 5000, released: 5000})
        keys(cache, live, 5000)[:] = 1.0
        keys(cache, released, 5000)[:] = 2.0
        cache.release(released)
        gpu.fail(function, nth, LAUNCH_FAILED)
        made = gpu.calls(function)
        try:
            cache.step({live: 8192})
        except DriverError:
            cache.step({live: 8192})
            failed = True
        else:
            failed = gpu.calls(function) - made >= nth
        gpu.clear_failures()
        assert keys(cache, live, 5000).all()
        assert not keys(cache, live, 8192)[5000:].any()
        return failed


def test_another_process_takes_the_memory_and_gives_it_back():
    with open_cache() as cache:
        slot = cache.acquire(100)
        cache.step({slot: 100})
        keys(cache, slot, 100)[:] = 5.0
        gpu.occupy(0, 4 << 30)
        with pytest.raises(OutOfMemory):
            cache.step({slot: 8000})
        assert (keys(cache, slot, 100) == 5.0).all()
        gpu.occupy(0, 0)
        cache.step({slot: 8000})
        assert (keys(cache, slot, 100) == 5.0).all()


def test_a_context_that_was_reset_is_a_typed_error_and_close_works():
    cache = open_cache()
    slot = cache.acquire(100)
    cache.step({slot: 100})
    gpu.reset_context(0)
    with pytest.raises(DriverError, match="CUDA_ERROR_CONTEXT_IS_DESTROYED"):
        cache.step({slot: 8000})
    cache.close()


def test_a_close_that_fails_is_reported_and_leaks_nothing():
    cache = open_cache()
    slot = cache.acquire(8000)
    cache.step({slot: 8000})
    gpu.fail("cuMemUnmap", 1, LAUNCH_FAILED)
    with pytest.raises(DriverError, match="cuMemUnmap"):
        cache.close()
    del cache, slot


def test_two_caches_in_one_process():
    with open_cache() as first, open_cache("token") as second:
        a, b = first.acquire(100), second.acquire(100)
        first.step({a: 100})
        second.step({b: 100})
        keys(first, a, 100)[:] = 1.0
        assert not keys(second, b, 100).any()
        first.close()
        keys(second, b, 100)[:] = 2.0


# --- fences ---


class TorchStream:
    def __init__(self, handle):
        self.cuda_stream = handle


class TorchEvent:
    def __init__(self, handle):
        self.cuda_event = handle


class ProtocolStream:
    def __init__(self, handle):
        self.handle = handle

    def __cuda_stream__(self):
        return (0, self.handle)


@pytest.mark.parametrize("kind", ["torch stream", "torch event", "protocol", "int", "fence"])
def test_a_released_slot_is_not_touched_before_the_callers_work_is_done(kind):
    with open_cache() as cache:
        slot = cache.acquire(100)
        cache.step({slot: 100})
        keys(cache, slot, 100)[:] = 3.0
        address = keys(cache, slot, 1).__array_interface__["data"][0]
        stream = gpu.make_stream(0)
        kernel = gpu.launch_kernel(0, stream, address, 4)
        event = gpu.make_event(0)
        gpu.record_event(0, event, stream)
        after = {
            "torch stream": lambda: TorchStream(stream),
            "torch event": lambda: TorchEvent(event),
            "protocol": lambda: ProtocolStream(stream),
            "int": lambda: stream,
            "fence": lambda: fence_after(DRIVER, 0, stream),
        }[kind]()
        before = keys(cache, slot, 100).copy()
        row = keys(cache, slot, 100)
        cache.release(slot, after=after)
        _advance()
        assert (row == before).all()
        gpu.release_kernel(kernel)
        again = cache.acquire(100)
        cache.step({again: 100})
        assert not keys(cache, again, 100).any()


def _advance():
    """Let every stream run as far as it can."""
    _native.stream_fence(DRIVER, 0, gpu.make_stream(0)).wait()


def test_reclaiming_a_slot_waits_for_its_kernel():
    """The emulated kernel faults, as a GPU does, where its pages are gone before it ends."""
    with open_cache(memory=f"{16 * PAGE}") as cache:
        live, released = cache.acquire(5000), cache.acquire(5000)
        cache.step({live: 5000, released: 5000})
        last = keys(cache, released, 5000)[4999:].__array_interface__["data"][0]
        stream = gpu.make_stream(0)
        kernel = gpu.launch_kernel(0, stream, last, 4)
        cache.release(released, after=stream)
        gpu.release_kernel(kernel)
        cache.step({live: 8192})
        assert cache.stats().reclaimed_pages > 0
        _advance()


def test_close_waits_for_the_callers_stream():
    cache = open_cache()
    slot = cache.acquire(100)
    cache.step({slot: 100})
    address = keys(cache, slot, 1).__array_interface__["data"][0]
    stream = gpu.make_stream(0)
    gpu.release_kernel(gpu.launch_kernel(0, stream, address, 4))
    cache.close(after=stream)
    _advance()


@pytest.mark.parametrize("after", ["a stream", object(), True])
def test_what_is_no_stream_is_refused_and_the_slot_stays(after):
    with open_cache() as cache:
        slot = cache.acquire(100)
        cache.step({slot: 100})
        with pytest.raises(ConfigError, match="not a CUDA stream or event"):
            cache.release(slot, after=after)
        cache.step({slot: 200})


def test_an_event_that_was_never_recorded_is_refused():
    with pytest.raises(ConfigError, match="never recorded"):
        fence_after(DRIVER, 0, TorchEvent(0))


def test_the_mapper_thread_survives_failures_and_leaks_nothing():
    with open_cache(background=True) as cache:
        slot = cache.acquire(100)
        cache.step({slot: 100})
        gpu.fail("cuMemMap", 1, LAUNCH_FAILED)
        cache.prefetch({slot: 8000})
        cache.drain()
        cache.step({slot: 8000})
        assert not keys(cache, slot, 8000).any()
        cache.release(slot)
        cache.drain()
