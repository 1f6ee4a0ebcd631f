# SPDX-License-Identifier: Apache-2.0
"""Bytes that come from another GPU: the order of what the streams of both do."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import pytest
from checked_cache import small_spec
from test_offload import check_same, filled, read

from pyvattn import KVCache, OutOfMemory, gpu_link
from pyvattn.gpu_link import GpuLink

torch = pytest.importorskip("torch", reason="views are tensors of torch")


HERE, REMOTE = torch.device("cpu"), torch.device("cuda:7")


class Streams:
    """Streams of two GPUs that only say in which order they were told what."""

    def __init__(self, monkeypatch):
        self.told = []
        self.entered = ()
        streams = self

        class Stream:
            def __init__(self, name):
                self.name = name

            def wait_stream(self, other):
                streams.told.append((self.name, "waits for", other.name))

        @contextmanager
        def entered(stream):
            before, streams.entered = streams.entered, (*streams.entered, stream.name)
            yield
            streams.entered = before

        numbers = {HERE: iter("12"), REMOTE: iter("12")}
        names = {HERE: "here", REMOTE: "remote"}
        monkeypatch.setattr(
            torch.cuda, "Stream", lambda device: Stream(f"{names[device]} {next(numbers[device])}")
        )
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(names[device]))
        monkeypatch.setattr(torch.cuda, "stream", entered)

    def copied(self, size):
        self.told.append((" and ".join(self.entered), "copies", size))


# What the current streams were told before comes first, and they wait for the copies.
BEFORE = [
    ("remote 1", "waits for", "remote"),
    ("here 1", "waits for", "here"),
    ("remote 2", "waits for", "remote"),
    ("here 2", "waits for", "here"),
]
AFTER = [(after, waits, before) for before, waits, after in BEFORE]
ONE, OTHER = "remote 1 and here 1", "remote 2 and here 2"


class Remote(torch.Tensor):
    """Bytes that say they lie on another GPU."""

    is_cuda = True
    device = REMOTE


@pytest.fixture
def streams(monkeypatch):
    found = Streams(monkeypatch)
    copy = torch.Tensor.copy_

    def noted(self, other, **options):
        found.copied(len(other))
        return copy(self, other.as_subclass(torch.Tensor), **options)

    monkeypatch.setattr(torch.Tensor, "copy_", noted)
    return found


def test_two_copies_are_under_way_at_a_time(streams):
    there, values = torch.zeros(10, dtype=torch.uint8), torch.arange(10, dtype=torch.uint8)
    with GpuLink(REMOTE, HERE, 6, staged=False) as link:
        for first, end in ((0, 4), (4, 6), (6, 10)):
            link.copy(there[first:end], values[first:end])
    assert torch.equal(there, values)
    copies = [(ONE, "copies", 4), (OTHER, "copies", 2), (ONE, "copies", 4)]
    assert streams.told == [*BEFORE, *copies, *AFTER]


def test_long_copies_go_one_after_the_other(streams, monkeypatch):
    monkeypatch.setattr(gpu_link, "_STAGED", 4)
    there, values = torch.zeros(12, dtype=torch.uint8), torch.arange(12, dtype=torch.uint8)
    with GpuLink(REMOTE, HERE, 6, staged=False) as link:
        for first, end in ((0, 4), (4, 9), (9, 12)):
            link.copy(there[first:end], values[first:end])
    assert torch.equal(there, values)
    assert streams.told == [*BEFORE, *((ONE, "copies", size) for size in (4, 5, 3)), *AFTER]


def test_a_buffer_is_filled_while_the_other_is_emptied(streams, monkeypatch):
    monkeypatch.setattr(gpu_link, "_STAGED", 4)
    there, values = torch.zeros(10, dtype=torch.uint8), torch.arange(10, dtype=torch.uint8)
    with GpuLink(REMOTE, HERE, 10, staged=True) as link:
        link.copy(there, values)
    assert torch.equal(there, values)
    # The first buffer is filled again in its streams: once it is empty.
    copies = [(turn, "copies", size) for turn, size in ((ONE, 4), (OTHER, 4), (ONE, 2))]
    assert streams.told == [*BEFORE, *(copy for copy in copies for _ in range(2)), *AFTER]


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
    copies = [size for _, what, size in streams.told if what == "copies"]
    views = sum(len(group) for group in sent.data)
    assert len(copies) == views * (1 + staged)
    assert streams.told[: len(BEFORE)] == BEFORE
    assert streams.told[-len(AFTER) :] == AFTER


def test_copies_before_one_that_fails_are_waited_for(streams, open_bench, driver_name, monkeypatch):
    spec = small_spec(max_tokens=16384, guard_tokens=0)
    source, target = (
        open_bench(name=driver_name, spec=spec, pages=24, shares=True) for _ in range(2)
    )
    slot, _ = filled(source, 21, seed=3)
    sent = source.cache.dense_views(slot)
    remote = tuple(tuple(view.as_subclass(Remote) for view in group) for group in sent.data)
    copy = GpuLink.copy
    calls = []

    def failing(self, there, values):
        calls.append(values)
        if len(calls) == 2:
            raise RuntimeError("no copy")
        copy(self, there, values)

    monkeypatch.setattr(GpuLink, "copy", failing)
    with pytest.raises(RuntimeError, match="no copy"):
        target.cache.restore(replace(sent, data=remote))
    assert streams.told[-len(AFTER) :] == AFTER
    assert not target.cache.live_slots()


def test_a_device_without_room_for_buffers_says_so(streams, monkeypatch):
    def full(*sizes, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "empty", full)
    with pytest.raises(OutOfMemory, match=r"has no 20 B beside the cache.*peer_access=True"):
        GpuLink(REMOTE, HERE, 10, staged=True)
