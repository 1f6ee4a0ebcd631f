"""Request traces: the lengths, and where known the arrival times, of real requests.

Two formats are read, told apart by their header:

- Azure LLM inference traces: ``TIMESTAMP, ContextTokens, GeneratedTokens``;
- lengths alone, as in the vAttention evaluation: ``num_prefill_tokens,
  num_decode_tokens``. Arrivals are then drawn from a Poisson process.

Where there is no file, :func:`synthetic_trace` makes one up. Its lengths
resemble a conversation service; it is not a recording and says so.
"""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from os import PathLike
from pathlib import Path

from pyvattn.errors import TraceError

DEFAULT_RATE = 5.0
SYNTHETIC_REQUESTS = 5000

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
    """Read the first ``limit`` requests of a trace file.

    ``rate`` (requests per second) and ``seed`` make up the arrivals that the
    file lacks. Raises :class:`~pyvattn.errors.TraceError`, naming the line,
    for what cannot be read; ``FileNotFoundError`` is left to the caller.
    """
    file = Path(path)
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            requests, arrivals = _read(csv.DictReader(stream), file.name, limit, rate, seed)
    except (UnicodeDecodeError, csv.Error, IsADirectoryError) as error:
        raise TraceError(f"{file} is not a CSV trace: {error}") from error
    if not requests:
        raise TraceError(f"{file} holds no requests")
    return Trace(file.name, requests, synthetic=False, arrivals=arrivals)


def synthetic_trace(
    count: int = SYNTHETIC_REQUESTS, *, rate: float = DEFAULT_RATE, seed: int = 0
) -> Trace:
    """Make up ``count`` requests; equal arguments give equal requests."""
    if count < 1:
        raise TraceError(f"a trace of {count} requests: use at least 1")
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


def _read(
    rows: csv.DictReader[str], name: str, limit: int | None, rate: float, seed: int
) -> tuple[tuple[Request, ...], str]:
    columns = rows.fieldnames or []
    if {"TIMESTAMP", "ContextTokens", "GeneratedTokens"} <= set(columns):
        return tuple(_azure(rows, name, limit)), "as recorded"
    if {"num_prefill_tokens", "num_decode_tokens"} <= set(columns):
        return tuple(_lengths(rows, name, limit, rate, seed)), _poisson_label(rate, seed)
    raise TraceError(
        f"{name} has none of the known headers (TIMESTAMP, ContextTokens, GeneratedTokens; or "
        f"num_prefill_tokens, num_decode_tokens) but {', '.join(columns) or 'none'}"
    )


def _azure(rows: Iterable[Mapping[str, str]], name: str, limit: int | None) -> Iterator[Request]:
    start: datetime | None = None
    for line, row in enumerate(islice(rows, limit), 2):
        moment = _moment(row["TIMESTAMP"], name, line)
        start = start or moment
        yield Request(
            (moment - start).total_seconds(),
            _tokens(row, "ContextTokens", name, line),
            _tokens(row, "GeneratedTokens", name, line),
        )


def _lengths(
    rows: Iterable[Mapping[str, str]], name: str, limit: int | None, rate: float, seed: int
) -> Iterator[Request]:
    times = _poisson(rate, seed)
    for line, row in enumerate(islice(rows, limit), 2):
        prompt = _tokens(row, "num_prefill_tokens", name, line)
        yield Request(next(times), prompt, _tokens(row, "num_decode_tokens", name, line))


def _moment(text: str, name: str, line: int) -> datetime:
    # Python 3.10 reads at most six digits of a second; the trace has seven.
    whole, _, fraction = text.partition(".")
    try:
        return datetime.fromisoformat(f"{whole}.{fraction[:6]:0<6}")
    except ValueError:
        raise TraceError(f"{name}, line {line}: TIMESTAMP {text!r} is not a time") from None


def _tokens(row: Mapping[str, str | None], column: str, name: str, line: int) -> int:
    text = (row[column] or "").strip()
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise TraceError(f"{name}, line {line}: {column} {text!r} is not a number of tokens from 1")
    return int(text)


def _poisson(rate: float, seed: int) -> Iterator[float]:
    if not (math.isfinite(rate) and rate > 0):
        raise TraceError(f"rate {rate}: use a positive number of requests per second")
    source = random.Random(f"arrivals {seed}")
    moment = 0.0
    while True:
        yield moment
        moment += source.expovariate(rate)


def _poisson_label(rate: float, seed: int) -> str:
    return f"Poisson, {rate:g} a second, seed {seed}"


def _draw(source: random.Random, median: float, sigma: float, maximum: int) -> int:
    return min(maximum, max(1, round(median * math.exp(source.gauss(0.0, sigma)))))
