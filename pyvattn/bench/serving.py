# SPDX-License-Identifier: Apache-2.0
"""Requests to serve, when they arrive, and what a run of them says about an engine."""

from __future__ import annotations

import itertools
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from pyvattn.errors import ConfigError


@dataclass(frozen=True)
class Load:
    """Prompts, the seconds after the start at which each arrives, and the tokens each is to get."""

    prompts: list[list[int]]
    arrivals: list[float]
    new_tokens: int

    @property
    def longest(self) -> int:
        """Tokens of the longest request, its new ones included."""
        return max(map(len, self.prompts)) + self.new_tokens


@dataclass(frozen=True)
class Run:
    """The tokens of every request, when each was known to the host, and when requests arrived.

    ``began`` and everything in ``times`` are readings of one clock, ``arrivals`` are seconds after
    ``began``, and ``waited`` are the seconds that went into waiting for memory to be mapped.
    """

    tokens: list[list[int]]
    times: list[list[float]]
    began: float
    arrivals: list[float]
    waited: float = 0.0

    @property
    def ended(self) -> float:
        """When the last token was known."""
        return max(times[-1] for times in self.times)

    @property
    def first(self) -> float:
        """Seconds until every request had its first token."""
        return max(times[0] for times in self.times) - self.began

    @property
    def whole(self) -> float:
        """Output tokens a second over the whole run, prompts included."""
        return sum(map(len, self.tokens)) / (self.ended - self.began)

    @property
    def decode(self) -> float:
        """Output tokens a second while every request decodes and no prompt runs."""
        begin = max(times[0] for times in self.times)
        end = min(times[-1] for times in self.times)
        within = sum(begin < at <= end for times in self.times for at in times)
        if not within:
            raise ConfigError(
                "there was no moment at which all requests decoded: raise --new-tokens, or lower "
                "--requests or --prompt-tokens"
            )
        return within / (end - begin)

    @property
    def to_first(self) -> list[float]:
        """Seconds from the arrival of each request to its first token."""
        return [
            times[0] - self.began - arrival
            for times, arrival in zip(self.times, self.arrivals, strict=True)
        ]

    @property
    def per_token(self) -> list[float]:
        """Seconds an output token of each request after its first, on average."""
        return [(times[-1] - times[0]) / (len(times) - 1) for times in self.times]

    @property
    def gaps(self) -> list[float]:
        """Seconds between every token and the one before it."""
        return [after - before for each in self.times for before, after in itertools.pairwise(each)]

    @property
    def waiting(self) -> float:
        """The share of the run that went into waiting for memory to be mapped."""
        return self.waited / (self.ended - self.began)


def poisson(count: int, rate: float, seed: int) -> list[float]:
    """Return ``count`` arrival times in seconds, ``rate`` a second on average.

    The gaps are exponential and seeded. A rate of 0 has all of them arrive at once.
    """
    if not rate:
        return [0.0] * count
    numbers = random.Random(seed)
    return list(itertools.accumulate(numbers.expovariate(rate) for _ in range(count)))


def percentile(values: Sequence[float], percent: int) -> float:
    """Return the percentile of at least two values, interpolated between them."""
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]
