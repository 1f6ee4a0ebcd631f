# SPDX-License-Identifier: Apache-2.0
"""A KVCache on a GPU: memory, ordering, limits and CUDA graphs."""

# ruff: noqa: E402
from __future__ import annotations

import threading

import pytest

torch = pytest.importorskip("torch")

from pyvattn import CacheSpec, KVCache, OutOfMemory
from pyvattn.attention import append

MIB = 1 << 20


def make_spec(**changes) -> CacheSpec:
    options = {
        "layers": 2,
        "kv_heads": 8,
        "head_dim": 128,
        "dtype": "bfloat16",
        "max_slots": 4,
        "max_tokens": 8192,
    }
    return CacheSpec(**{**options, **changes})


def open_cache(layout: str = "layer", memory: str = "1GiB", **options) -> KVCache:
    return KVCache(
        make_spec(), device="cuda", driver="cumem", layout=layout, memory=memory, **options
    )


def device_memory_in_use() -> int:
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    return total - free


@pytest.mark.parametrize("layout", ["layer", "token"])
def test_torch_reads_and_writes_tokens(layout):
    with open_cache(layout) as cache:
        slot = cache.acquire(3000)
        cache.step({slot: 3000})
        k, v = cache.layer(1)
        assert k.device.type == "cuda"
        backed = 3000 + cache.spec.guard_tokens
        assert not k[slot.index, :backed].any()
        k[slot.index, :3000].fill_(1.0)
        v[slot.index, :3000].copy_(torch.full((3000, 8, 128), 2.0, dtype=torch.bfloat16))
        assert k[slot.index, :3000].eq(1.0).all()
        assert v[slot.index, :3000].cpu().eq(2.0).all()
        assert not cache.layer(0)[0][slot.index, :backed].any()
        cache.step({slot: 8000})
        assert k[slot.index, :3000].eq(1.0).all()
        assert not k[slot.index, 3000:8000].any()


@pytest.mark.alone
def test_memory_is_taken_by_steps_and_goes_back():
    torch.zeros(1, device="cuda")
    before = device_memory_in_use()
    with open_cache() as cache:
        cache.drain()
        opened = device_memory_in_use()
        assert opened - before < 64 * MIB, "a cache of 1 GiB takes memory before it needs any"
        slots = [cache.acquire(8000) for _ in range(4)]
        cache.step(dict.fromkeys(slots, 8000))
        mapped = cache.stats().bytes_mapped
        assert device_memory_in_use() - opened >= mapped * 0.9
        for slot in slots:
            cache.release(slot)
        cache.resize(16 * MIB)
        assert device_memory_in_use() - opened < mapped / 2
    assert device_memory_in_use() - before < 64 * MIB


@pytest.mark.alone
def test_memory_that_torch_took_is_out_of_memory_and_the_cache_stays_as_it_was():
    with open_cache(memory="64GiB", background=False) as cache:
        slot = cache.acquire(100)
        cache.step({slot: 100})
        k, _ = cache.layer(0)
        k[slot.index, :100] = 5.0
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info()
        hog = torch.empty(free - 8 * MIB, dtype=torch.uint8, device="cuda")
        others = {cache.acquire(8000): 8000 for _ in range(3)}
        with pytest.raises(OutOfMemory):
            cache.step({slot: 8000, **others})
        assert cache.length(slot) == 100
        assert k[slot.index, :100].eq(5.0).all()
        del hog
        torch.cuda.empty_cache()
        cache.step({slot: 8000, **others})
        assert k[slot.index, :100].eq(5.0).all()


@pytest.mark.parametrize("after", ["stream", "event", "current stream"])
def test_a_slot_is_not_zeroed_under_a_running_kernel(after):
    """The copy sleeps first: a page zeroed or unmapped too early changes what it reads."""
    with open_cache(background=False) as cache:
        slot = cache.acquire(8000)
        cache.step({slot: 8000})
        k, _ = cache.layer(0)
        k[slot.index, :8000] = 3.0
        torch.cuda.synchronize()
        stream, event = torch.cuda.Stream(), torch.cuda.Event()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(200_000_000)
            copy = k[slot.index, :8000].clone()
            event.record()
            named = {"stream": stream, "event": event, "current stream": None}[after]
            cache.release(slot, after=named)
        again = cache.acquire(8000)
        cache.step({again: 8000})
        assert not k[again.index, :8000].any()
        torch.cuda.synchronize()
        assert copy.eq(3.0).all()


def test_reclaimed_pages_leave_only_when_their_kernel_has_ended():
    with open_cache(memory="160MiB", background=False) as cache:
        live, released = cache.acquire(5000), cache.acquire(5000)
        cache.step({live: 5000, released: 5000})
        k, _ = cache.layer(0)
        k[released.index, :5000] = 3.0
        cache.resize(cache.stats().bytes_allocated)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            torch.cuda._sleep(200_000_000)
            copy = k[released.index, :5000].clone()
        cache.release(released, after=stream)
        cache.step({live: 8000})
        assert cache.stats().reclaimed_pages > 0
        torch.cuda.synchronize()
        assert copy.eq(3.0).all()


def test_two_caches_on_one_device():
    with open_cache() as first, open_cache("token") as second:
        a, b = first.acquire(100), second.acquire(100)
        first.step({a: 100})
        second.step({b: 100})
        first.layer(0)[0][a.index, :100] = 1.0
        assert not second.layer(0)[0][b.index, :100].any()
        first.close()
        second.layer(0)[0][b.index, :100] = 2.0
        torch.cuda.synchronize()


def test_every_device_of_the_process_has_its_own_cache():
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU only")
    for ordinal in range(torch.cuda.device_count()):
        with KVCache(
            make_spec(), device=f"cuda:{ordinal}", driver="cumem", layout="layer", memory="1GiB"
        ) as cache:
            slot = cache.acquire(100)
            cache.step({slot: 100})
            k, _ = cache.layer(0)
            assert k.device.index == ordinal
            k[slot.index, :100] = 1.0
            torch.cuda.synchronize(ordinal)


# --- CUDA graphs ---


@pytest.mark.parametrize("layout", ["layer", "token"])
def test_one_captured_append_serves_slots_that_grow_join_and_leave(layout):
    with open_cache(layout) as cache:
        live = {cache.acquire(10): 0, cache.acquire(10): 0}
        slots = torch.zeros(2, dtype=torch.int64, device="cuda")
        positions = torch.zeros_like(slots)
        new = torch.zeros(2, 8, 128, dtype=torch.bfloat16, device="cuda")

        def decode() -> None:
            for layer in range(2):
                append(cache, layer, slots, positions, new, new)

        def advance(value: float) -> None:
            cache.step({slot: length + 1 for slot, length in live.items()})
            slots.copy_(torch.tensor([slot.index for slot in live]))
            positions.copy_(torch.tensor(list(live.values())))
            new.fill_(value)

        advance(0.0)
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            decode()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            decode()

        for step in range(3000):
            if step == 1500:  # one leaves, another joins in its place
                cache.release(next(iter(live)))
                live = {cache.acquire(10): 0, list(live)[1]: list(live.values())[1]}
            advance(float(step % 100))
            graph.replay()
            live = {slot: length + 1 for slot, length in live.items()}
        torch.cuda.synchronize()
        for slot, length in live.items():
            first = 3000 - length
            wanted = torch.arange(first, 3000, device="cuda") % 100
            for layer in range(2):
                found = cache.layer(layer)[0][slot.index, :length, 0, 0]
                assert found.eq(wanted.to(found.dtype)).all()


def test_mapping_goes_on_in_another_thread_while_a_graph_is_captured():
    with open_cache(background=False) as cache:
        slot = cache.acquire(100)
        cache.step({slot: 100})
        data = torch.zeros(1000, device="cuda")
        graph = torch.cuda.CUDAGraph()
        errors = []

        def grow() -> None:
            try:
                cache.step({slot: 8000})
            except Exception as error:
                errors.append(error)

        with torch.cuda.graph(graph):
            data.add_(1.0)
            thread = threading.Thread(target=grow)
            thread.start()
            thread.join()
            data.add_(1.0)
        assert errors == []
        graph.replay()
        torch.cuda.synchronize()
        assert data.eq(2.0).all()
        assert not cache.layer(0)[0][slot.index, :8000].any()
