# SPDX-License-Identifier: Apache-2.0
"""Request traces: the lengths, and where known the arrival times, of real requests.

``pyvattn.trace_rows`` knows the formats. Where a file has no times, arrivals
are drawn from a Poisson process. Where there is no file, :func:`synthetic_trace`
makes one up. Its lengths resemble a conversation service; it is not a recording
and says so.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike

from pyvattn.arguments import check_path, check_whole, is_number
from pyvattn.errors import TraceError
from pyvattn.text import shown
from pyvattn.trace_rows import Row, read_rows
from pyvattn.whole_numbers import whole_number

__all__ = ["Request", "Trace", "read_trace", "synthetic_trace"]

DEFAULT_RATE = 5.0
SYNTHETIC_REQUESTS = 5000
# What still fits in the memory of a small machine.
_MOST_SYNTHETIC = 10_000_000

# Log-normal lengths (median, sigma) cut at a maximum.
_SYNTHETIC_PROMPT = (800.0, 0.9, 14000)
_SYNTHETIC_GENERATED = (150.0, 0.8, 1000)


@dataclass(frozen=True)
class Request:
    """One request: arrival in seconds from the trace's start, and two lengths in tokens."""

    arrival: float
    prompt: int
    generated: int


@dataclass(frozen=True)
class Trace:
    """Requests in order of arrival, and where they come from.

    ``synthetic`` is true for a made-up trace; ``arrivals`` says how the times
    came about.
    """

    name: str
    requests: tuple[Request, ...]
    synthetic: bool
    arrivals: str

    @property
    def label(self) -> str:
        """The name for titles and tables; a synthetic trace is never mistaken for a real one."""
        return f"SYNTHETIC {self.name}" if self.synthetic else self.name

    @property
    def longest(self) -> int:
        """The most tokens that one request reaches."""
        return max(request.prompt + request.generated for request in self.requests)


def read_trace(
    path: str | PathLike[str],
    *,
    limit: int | None = None,
    rate: float = DEFAULT_RATE,
    seed: int = 0,
) -> Trace:
    """Read the first ``limit`` requests of a trace file, in order of arrival.

    ``rate`` (requests per second) and ``seed`` make up the arrivals that the
    file lacks. Raises :class:`~pyvattn.errors.TraceError`, naming the line,
    for what cannot be read. Where there is no such file, ``FileNotFoundError`` is left to the
    caller.
    """
    file = check_path("path", path)
    if limit is not None:
        limit = check_whole("limit", limit, least=1)
    _check_rate(rate)
    _check_seed(seed)
    rows = read_rows(file)
    if not rows:
        raise TraceError(f"{file} holds no requests")
    if rows[0].nanoseconds is None:
        times, arrivals = _poisson(rate, seed), _poisson_label(rate, seed)
        requests = [Request(next(times), row.prompt, row.generated) for row in rows[:limit]]
    else:
        requests, arrivals = _recorded(rows, limit)
    return Trace(file.name, tuple(requests), synthetic=False, arrivals=arrivals)


def _recorded(rows: list[Row], limit: int | None) -> tuple[list[Request], str]:
    """Return the requests as they arrived, from 0, and how the times came about."""
    timed = sorted(((row.nanoseconds or 0, row.line, row) for row in rows), key=lambda one: one[:2])
    start = timed[0][0]
    requests = [
        Request((at - start) / 1e9, row.prompt, row.generated) for at, _, row in timed[:limit]
    ]
    in_order = [row for *_, row in timed] == rows
    return requests, "as recorded" if in_order else "as recorded, sorted by time"


def synthetic_trace(
    count: int = SYNTHETIC_REQUESTS, *, rate: float = DEFAULT_RATE, seed: int = 0
) -> Trace:
    """Make up ``count`` requests; equal arguments give equal requests."""
    if not 1 <= (whole_number(count) or 0) <= _MOST_SYNTHETIC:
        raise TraceError(
            f"a trace of {shown(count)} requests: use a whole number from 1 to {_MOST_SYNTHETIC:,}"
        )
    _check_rate(rate)
    _check_seed(seed)
    lengths = random.Random(f"lengths {seed}")
    pairs = (
        (_draw(lengths, *_SYNTHETIC_PROMPT), _draw(lengths, *_SYNTHETIC_GENERATED))
        for _ in range(count)
    )
    requests = tuple(
        Request(at, *pair) for at, pair in zip(_poisson(rate, seed), pairs, strict=False)
    )
    return Trace(
        f"trace, seed {seed}", requests, synthetic=True, arrivals=_poisson_label(rate, seed)
    )


def _check_rate(rate: float) -> None:
    if not (is_number(rate) and rate > 0):
        raise TraceError(f"rate {shown(rate)}: use a positive number of requests per second")


def _poisson(rate: float, seed: int) -> Iterator[float]:
    source = random.Random(f"arrivals {seed}")
    moment = 0.0
    while True:
        yield moment
        moment += source.expovariate(rate)


def _check_seed(seed: object) -> None:
    number = whole_number(seed)
    if number is None or not 0 <= number < 1 << 64:
        raise TraceError(f"seed={shown(seed)}: use a whole number from 0 to 2^64 - 1")


def _poisson_label(rate: float, seed: int) -> str:
    return f"Poisson, {rate:g} a second, seed {seed}"


def _draw(source: random.Random, median: float, sigma: float, maximum: int) -> int:
    return min(maximum, max(1, round(median * math.exp(source.gauss(0.0, sigma)))))
