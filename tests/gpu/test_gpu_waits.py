# SPDX-License-Identifier: Apache-2.0
"""What of a host's wait passes while a GPU has nothing to do, by the GPU's own clock."""

# ruff: noqa: E402
from __future__ import annotations

from time import perf_counter

import pytest

torch = pytest.importorskip("torch")

from pyvattn.integrations.vllm.waits import Waits

# Of the GPU, which is more than a second; the host waits a fraction of that.
CYCLES = 4_000_000_000
SECONDS = 0.02


@pytest.mark.parametrize("busy", [True, False])
def test_a_wait_is_exposed_where_the_gpu_has_nothing_to_do(busy):
    waits = Waits(lambda: torch.cuda.Event(enable_timing=True))
    for _ in range(2):  # the first makes the events
        torch.cuda.synchronize()
        waits.reset()
        if busy:
            torch.cuda._sleep(CYCLES)
        with waits.timed():
            until = perf_counter() + SECONDS
            while perf_counter() < until:
                pass
    stats = waits.stats()
    assert stats["waited_seconds"] >= SECONDS
    share = stats["exposed_seconds"] / stats["waited_seconds"]
    assert share < 0.5 if busy else share > 0.5
