# SPDX-License-Identifier: Apache-2.0
"""Bytes that come from a GPU without access: the order of what its streams do."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import pytest
from checked_cache import small_spec
from test_offload import check_same, filled, read

from pyvattn import KVCache, OutOfMemory, staging

torch = pytest.importorskip("torch", reason="views are tensors of torch")


AT_THE_END = [("current", "waits for", "first"), ("current", "waits for", "second")]


class Streams:
    """Streams of a GPU that only say in which order they were told what."""

    def __init__(self, monkeypatch):
        self.told = []
        self.now = "current"
        streams = self

        class Stream:
            def __init__(self, name):
                self.name = name

            def wait_stream(self, other):
                streams.told.append((self.name, "waits for", other.name))

        @contextmanager
        def entered(stream):
            streams.now = stream.name
            yield
            streams.now = "current"

        names = iter(("first", "second"))
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream(next(names)))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("current"))
        monkeypatch.setattr(torch.cuda, "stream", entered)

    def copied(self, size):
        self.told.append((self.now, "copies", size))


class Remote(torch.Tensor):
    """Bytes that say they lie on another GPU."""

    is_cuda = True
    device = torch.device("cuda:7")


@pytest.fixture
def streams(monkeypatch):
    found = Streams(monkeypatch)
    copy = torch.Tensor.copy_

    def noted(self, other, **options):
        found.copied(len(other))
        return copy(self, other.as_subclass(torch.Tensor), **options)

    monkeypatch.setattr(torch.Tensor, "copy_", noted)
    return found


def test_a_buffer_is_filled_while_the_other_is_emptied(streams, monkeypatch):
    monkeypatch.setattr(staging, "_STAGED", 4)
    there, values = torch.zeros(10, dtype=torch.uint8), torch.arange(10, dtype=torch.uint8)
    way = staging.Staging(torch.device("cpu"), 10)
    way.copy(there, values)
    way.close()
    assert torch.equal(there, values)
    assert streams.told == [
        ("first", "waits for", "current"),
        ("second", "waits for", "current"),
        ("first", "copies", 4),
        ("first", "copies", 4),
        ("second", "copies", 4),
        ("second", "copies", 4),
        # The first buffer again, in its stream: once it is empty.
        ("first", "copies", 2),
        ("first", "copies", 2),
        ("current", "waits for", "first"),
        ("current", "waits for", "second"),
    ]


@pytest.mark.parametrize(("peers", "staged"), [((), True), (("cuda:7",), False)])
def test_a_slot_comes_straight_from_a_gpu_with_access(
    streams, open_bench, driver_name, monkeypatch, peers, staged
):
    spec = small_spec(max_tokens=16384, guard_tokens=0)
    source, target = (
        open_bench(name=driver_name, spec=spec, pages=24, shares=True) for _ in range(2)
    )
    slot, written = filled(source, 21, seed=3)
    sent = source.cache.dense_views(slot)
    remote = tuple(tuple(view.as_subclass(Remote) for view in group) for group in sent.data)
    monkeypatch.setattr(KVCache, "peers", peers)
    there = target.cache.restore(replace(sent, data=remote))
    check_same(read(target, there), written)
    assert any(name != "current" for name, what, _ in streams.told if what == "copies") is staged
    if staged:
        assert streams.told[-2:] == AT_THE_END


def test_copies_before_one_that_fails_are_waited_for(streams, open_bench, driver_name, monkeypatch):
    spec = small_spec(max_tokens=16384, guard_tokens=0)
    source, target = (
        open_bench(name=driver_name, spec=spec, pages=24, shares=True) for _ in range(2)
    )
    slot, _ = filled(source, 21, seed=3)
    sent = source.cache.dense_views(slot)
    remote = tuple(tuple(view.as_subclass(Remote) for view in group) for group in sent.data)
    copy = staging.Staging.copy
    calls = []

    def failing(self, there, values):
        calls.append(values)
        if len(calls) == 2:
            raise RuntimeError("no copy")
        copy(self, there, values)

    monkeypatch.setattr(staging.Staging, "copy", failing)
    with pytest.raises(RuntimeError, match="no copy"):
        target.cache.restore(replace(sent, data=remote))
    assert streams.told[-2:] == AT_THE_END
    assert not target.cache.live_slots()


def test_a_device_without_room_for_buffers_says_so(streams, monkeypatch):
    def full(*sizes, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "empty", full)
    with pytest.raises(OutOfMemory, match=r"has no 20 B beside the cache.*peer_access=True"):
        staging.Staging(torch.device("cpu"), 10)
