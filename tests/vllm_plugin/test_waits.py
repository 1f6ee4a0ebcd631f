# SPDX-License-Identifier: Apache-2.0
"""What steps waited for maps, by the host's clock and by a device's that a test moves."""

from __future__ import annotations

import pytest

from pyvattn.integrations.vllm import waits as module
from pyvattn.integrations.vllm.waits import Waits


class Device:
    """A device with ``work`` seconds before it, and a host: their clock is moved by tests."""

    def __init__(self):
        self.now = self.work_ends = 0.0
        self.events = 0

    def launch(self, seconds):
        self.work_ends = max(self.now, self.work_ends) + seconds

    def make_event(self):
        self.events += 1
        return Event(self)


class Event:
    def __init__(self, device):
        self.device = device

    def record(self):
        self.at = max(self.device.now, self.device.work_ends)

    def query(self):
        return self.at <= self.device.now

    def synchronize(self):
        self.device.now = max(self.device.now, self.at)

    def elapsed_time(self, later):
        assert self.query()
        assert later.query()
        return (later.at - self.at) * 1e3


@pytest.fixture
def device(monkeypatch):
    device = Device()
    monkeypatch.setattr(module, "perf_counter", lambda: device.now)
    return device


@pytest.fixture
def waits(device):
    return Waits(device.make_event)


def wait(waits, device, seconds):
    with waits.timed():
        device.now += seconds


@pytest.mark.parametrize(
    ("busy", "exposed"), [(0.0, 0.25), (0.125, 0.125), (0.25, 0.0), (4.0, 0.0)]
)
def test_a_wait_is_exposed_from_the_moment_the_device_is_done(waits, device, busy, exposed):
    device.launch(busy)
    wait(waits, device, 0.25)
    assert waits.stats() == {
        "waits": 1,
        "waited_seconds": 0.25,
        "exposed_seconds": exposed,
        "longest_wait_seconds": 0.25,
    }


def test_waits_add_up_and_their_events_are_used_again(waits, device):
    for seconds in (0.25, 0.5, 0.125):
        device.launch(0.125)
        wait(waits, device, seconds)
        device.now += 1
    stats = waits.stats()
    assert (stats["waits"], stats["longest_wait_seconds"]) == (3, 0.5)
    assert (stats["waited_seconds"], stats["exposed_seconds"]) == (0.875, 0.5)
    assert device.events <= 4


def test_what_the_device_has_not_passed_is_not_waited_for_by_a_step(waits, device):
    device.launch(4.0)
    wait(waits, device, 0.5)
    wait(waits, device, 0.5)
    assert device.now == 1.0
    assert waits.stats()["exposed_seconds"] == 0.0
    assert device.now == 4.0


def test_a_wait_that_fails_is_counted_too(waits, device):
    def fail():
        with waits.timed():
            device.now += 0.5
            raise RuntimeError("no map")

    with pytest.raises(RuntimeError, match="no map"):
        fail()
    assert waits.stats()["waited_seconds"] == waits.stats()["exposed_seconds"] == 0.5


def test_counting_begins_anew(waits, device):
    device.launch(0.25)
    wait(waits, device, 0.125)
    waits.reset()
    device.now += 1
    assert set(waits.stats().values()) == {0}
    wait(waits, device, 0.25)
    assert waits.stats()["exposed_seconds"] == 0.25


def test_without_a_device_every_wait_is_exposed(device):
    waits = Waits()
    wait(waits, device, 0.5)
    assert waits.stats()["exposed_seconds"] == waits.stats()["waited_seconds"] == 0.5
