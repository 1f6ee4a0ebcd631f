# SPDX-License-Identifier: Apache-2.0
"""What a replay finds out."""

from __future__ import annotations

from dataclasses import dataclass, field

from pyvattn.samples import Sample


@dataclass(frozen=True)
class Result:
    """Sums and means over the steps of one replay.

    Bytes: ``used`` by tokens, ``held`` by live requests, ``mapped`` including
    what is kept for the next requests. Waste is ``held`` minus ``used``, for
    each live request. ``mean_extent_bytes`` are those of a map call. Times are
    simulated, except ``wall_seconds``.
    """

    label: str
    requests: int
    refused: int
    preempted: int
    steps: int
    seconds: float
    mean_wait: float
    mean_live: float
    peak_live: int
    mean_used: float
    mean_held: float
    peak_held: int
    mean_mapped: float
    peak_mapped: int
    waste_bytes: float
    waste_tokens: float
    map_calls: int
    unmap_calls: int
    mean_extent_bytes: float
    wall_seconds: float
    samples: tuple[Sample, ...] = field(repr=False)


class Recorder:
    """Adds up the steps, and keeps at most ``capacity`` evenly spaced samples."""

    def __init__(self, capacity: int = 2048) -> None:
        self._capacity = capacity
        self._stride = 1
        self.samples: list[Sample] = []
        self.steps = 0
        self.live = self.used = self.held = self.mapped = 0
        self.peak_live = self.peak_held = self.peak_mapped = 0

    def add(self, seconds: float, live: int, used: int, held: int, mapped: int) -> None:
        """Record one step."""
        if self.steps % self._stride == 0:
            self.samples.append(Sample(seconds, live, used, held, mapped))
            if len(self.samples) > self._capacity:
                del self.samples[1::2]
                self._stride *= 2
        self.steps += 1
        self.live += live
        self.used += used
        self.held += held
        self.mapped += mapped
        self.peak_live = max(self.peak_live, live)
        self.peak_held = max(self.peak_held, held)
        self.peak_mapped = max(self.peak_mapped, mapped)
