# SPDX-License-Identifier: Apache-2.0
"""What a token takes to copy and to compute, with a clock of the test's."""

from __future__ import annotations

import pytest

from pyvattn.integrations.vllm import swap_rates
from pyvattn.integrations.vllm.swap_rates import Rates, StepClock


class Device:
    """Events of a device that has come as far as ``passed``, on a clock in seconds."""

    def __init__(self):
        self.now = 0.0
        self.passed = float("inf")

    def event(self):
        return _Event(self)


class _Event:
    def __init__(self, device):
        self._device = device

    def record(self):
        self.at = self._device.now

    def query(self):
        return self.at <= self._device.passed

    def elapsed_time(self, later):
        return (later.at - self.at) * 1e3


@pytest.fixture(params=["device", "host"])
def device(request, monkeypatch):
    device = Device()
    monkeypatch.setattr(swap_rates, "perf_counter", lambda: device.now)
    device.clock = StepClock(device.event if request.param == "device" else None)
    return device


def run(device, tokens, seconds):
    device.clock.begin(tokens)
    device.now += seconds
    device.clock.end()


def test_the_fastest_of_large_steps_counts(device):
    assert device.clock.token_seconds() is None
    run(device, 1000, 2.0)
    run(device, 8000, 8.0)
    run(device, 6000, 3.0)
    # A small step is no prompt's, whatever it takes.
    run(device, 3000, 0.3)
    run(device, 0, 0.0)
    assert device.clock.token_seconds() == pytest.approx(0.0005)


def test_a_step_that_the_device_has_not_passed_is_not_waited_for():
    device = Device()
    clock = device.clock = StepClock(device.event)
    run(device, 1000, 1.0)
    device.passed = 1.0
    run(device, 1000, 0.5)
    assert clock.token_seconds() == pytest.approx(0.001)
    device.passed = 1.5
    assert clock.token_seconds() == pytest.approx(0.0005)


@pytest.mark.parametrize(
    ("rates", "is_cheaper"),
    [
        (Rates(1.0, 2.0), True),
        (Rates(2.0, 1.0), False),
        (Rates(None, 1.0), True),
        (Rates(2.0, None), True),
    ],
)
def test_copying_is_cheaper_unless_both_are_known_to_say_otherwise(rates, is_cheaper):
    assert rates.copying_is_cheaper is is_cheaper


def test_a_step_waits_for_the_slowest_worker():
    assert Rates(1.0, 4.0).slower(Rates(2.0, 3.0)) == Rates(2.0, 4.0)
    assert Rates(None, 4.0).slower(Rates(2.0, None)) == Rates(2.0, 4.0)
    assert Rates().slower(Rates()) == Rates()
