# SPDX-License-Identifier: Apache-2.0
"""Driver calls, kept while a cache is used, written to a file, and made again from it.

To find out what went wrong before a call that failed, and what the calls of a load cost on
another driver or machine. ``pyvattn replay --calls`` does the same with a file.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby
from os import PathLike
from time import perf_counter
from typing import Any

from pyvattn import _native
from pyvattn.arguments import check_name, check_ordinal, check_path, check_type, check_whole
from pyvattn.errors import ConfigError, DriverError, TraceError
from pyvattn.files import read_text, write_whole
from pyvattn.geometry import check_page_size
from pyvattn.text import printable, shown
from pyvattn.units import format_page_size

__all__ = ["CallCount", "CallTrace", "open_traced", "read_calls", "replay_calls", "write_calls"]

_FORMAT = 1
_MOST_BYTES = 1 << 30
_MOST_ENTRIES = 1 << 32
_NUMBERS = ("call", "address", "length", "slab", "offset")
_OPERATIONS = ("reserve", "release_reservation", "allocate_slab", "free_slab", "map", "unmap",
               "zero")  # fmt: skip


@dataclass(frozen=True)
class _Entry:
    """One entry of a call: the fields of a ``TraceRecord``."""

    call: int
    operation: str
    address: int
    length: int
    slab: int
    offset: int
    failure: str


@dataclass(frozen=True)
class CallTrace:
    """The calls of one driver, in their order, from its opening on.

    ``driver`` is its name, ``page_size`` in bytes; ``entries`` are what calls were made of, and
    ``missing`` how many of the first were no longer kept.
    """

    driver: str
    page_size: int
    missing: int
    entries: tuple[Any, ...]


@dataclass(frozen=True)
class CallCount:
    """What one operation came to when calls were made again.

    ``calls`` of ``entries`` in all, over ``bytes``, took ``seconds``. ``failed`` had failed when
    they were recorded: such a call changes nothing, and is not made again. ``last_failure`` is what
    the newest of them said.
    """

    operation: str
    calls: int
    entries: int
    bytes: int
    seconds: float
    failed: int
    last_failure: str


def open_traced(
    driver: str = "host", page_size: int | str = "64K", device: int = 0, capacity: int = 1 << 20
) -> _native.TraceAdaptor:
    """Open a driver that keeps its last ``capacity`` entries of calls, failed ones too.

    It goes to :meth:`pyvattn.KVCache.on_driver`, and then to :func:`write_calls`. Raises
    :class:`~pyvattn.errors.ConfigError` and :class:`~pyvattn.errors.DriverUnavailable`.
    """
    check_name("driver", driver, such_as="host")
    size = check_page_size(page_size)
    ordinal = check_ordinal("device", device)
    most = check_whole("capacity", capacity, least=1)
    if most > _MOST_ENTRIES:
        raise ConfigError(f"capacity={shown(capacity)}: no memory holds so many entries")
    return _native.TraceAdaptor(_native.make_driver(driver, size, ordinal), most)


def write_calls(path: str | PathLike[str], driver: _native.TraceAdaptor) -> None:
    """Write the calls that ``driver`` keeps, as JSON lines; the first line says of what.

    The file is written whole or not at all. Raises :class:`~pyvattn.errors.TraceError` where it
    cannot be.
    """
    target = check_path("path", path)
    check_type("driver", driver, _native.TraceAdaptor)
    head = {
        "calls": _FORMAT,
        "driver": driver.capabilities.name,
        "page_size": driver.page_size,
    }
    fields = ("sequence", *_Entry.__dataclass_fields__)
    lines = [{name: getattr(record, name) for name in fields} for record in driver.records()]
    try:
        write_whole(target, (json.dumps(line) + "\n" for line in (head, *lines)))
    except OSError as error:
        raise TraceError(
            f"cannot write calls to {printable(str(target))}: {error.strerror or error}"
        ) from error


def read_calls(path: str | PathLike[str]) -> CallTrace:
    """Read what :func:`write_calls` wrote.

    Raises :class:`~pyvattn.errors.TraceError`, naming the line, for anything else. Where there
    is no such file, ``FileNotFoundError`` is left to the caller.
    """
    file = check_path("path", path)
    try:
        lines = [json.loads(line) for line in read_text(file, _MOST_BYTES).splitlines()]
        head = lines[0] if lines else None
        if not isinstance(head, dict) or head.get("calls") != _FORMAT:
            raise ValueError("its first line does not say so")
        entries = [_entry(number, line) for number, line in enumerate(lines[1:], 2)]
        driver, page_size = head["driver"], check_page_size(head["page_size"])
        check_name("driver", driver, such_as="host")
        missing = check_whole("sequence", lines[1]["sequence"]) if entries else 0
    except FileNotFoundError:
        raise
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise TraceError(
            f"{printable(str(file))} holds no calls of a driver ({printable(str(error))}): name a "
            "file that write_calls() wrote"
        ) from error
    return CallTrace(driver, page_size, missing, tuple(entries))


def _entry(number: int, line: Any) -> _Entry:
    if not isinstance(line, dict):
        raise ValueError(f"line {number} is {shown(line)}")
    for name in _NUMBERS:
        value = line[name]
        if type(value) is not int or not 0 <= value < 1 << 63:
            raise ValueError(f"line {number}: {name}={shown(value)}")
    if line["operation"] not in _OPERATIONS or not isinstance(line["failure"], str):
        raise ValueError(f"line {number}: operation {shown(line['operation'])}")
    return _Entry(**{name: line[name] for name in _Entry.__dataclass_fields__})


def replay_calls(trace: CallTrace, driver: str = "host", device: int = 0) -> tuple[CallCount, ...]:
    """Make the calls of a trace again, on a driver by name, and say what they took.

    Every call is checked first, so that a file that was changed does no harm. Raises
    :class:`~pyvattn.errors.TraceError` for calls that do not follow from each other or whose
    first are missing, and what :func:`open_traced` raises.
    """
    check_type("trace", trace, CallTrace)
    check_name("driver", driver, such_as="host")
    if trace.missing:
        raise TraceError(
            f"the first {trace.missing} entries of calls were no longer kept: record with a larger "
            "capacity"
        )
    ordinal = check_ordinal("device", device)
    opened = _native.make_driver(driver, check_page_size(trace.page_size), ordinal)
    again = _Again(_native.CheckedAdaptor(opened))
    for number, entries in groupby(trace.entries, key=lambda entry: entry.call):
        try:
            again.make(list(entries))
        except (DriverError, LookupError) as error:
            raise TraceError(f"call {number} cannot be made again: {error}") from error
    return again.counts()


class _Again:
    """Makes calls at addresses and of slabs of its own."""

    def __init__(self, driver: _native.CheckedAdaptor) -> None:
        self._driver = driver
        self._bases: list[tuple[int, int, int]] = []  # as recorded, bytes, here
        self._slabs: dict[int, int] = {}
        self._made: dict[str, list[tuple[int, int, float]]] = {each: [] for each in _OPERATIONS}
        self._failed: dict[str, list[str]] = {each: [] for each in _OPERATIONS}

    def make(self, entries: list[_Entry]) -> None:
        """Make one call, unless it had failed."""
        first = entries[0]
        if first.failure:
            self._failed[first.operation].append(first.failure)
            return
        call: Callable[[list[_Entry]], None] = getattr(self, f"_{first.operation}")
        before = perf_counter()
        call(entries)
        took = perf_counter() - before
        bytes_ = sum(entry.length for entry in entries)
        self._made[first.operation].append((len(entries), bytes_, took))

    def counts(self) -> tuple[CallCount, ...]:
        """Sum up, by operation; those that did not occur are left out."""
        return tuple(
            CallCount(
                name,
                len(made),
                sum(each[0] for each in made),
                sum(each[1] for each in made),
                sum(each[2] for each in made),
                len(self._failed[name]),
                self._failed[name][-1] if self._failed[name] else "",
            )
            for name, made in self._made.items()
            if made or self._failed[name]
        )

    def _here(self, address: int) -> int:
        place = bisect_right(self._bases, (address, 1 << 63, 0)) - 1
        base, length, here = self._bases[place] if place >= 0 else (0, 0, 0)
        if not base <= address < base + length:
            raise LookupError(f"{address:#x} lies in nothing that was reserved")
        return here + address - base

    def _batch(self, entries: Iterable[_Entry]) -> list[_native.MapEntry]:
        return [
            _native.MapEntry(self._here(each.address), each.length, self._slab(each), each.offset)
            for each in entries
        ]

    def _slab(self, entry: _Entry) -> int:
        if entry.slab not in self._slabs:
            raise LookupError(f"slab {entry.slab} was never allocated")
        return self._slabs[entry.slab]

    def _reserve(self, entries: list[_Entry]) -> None:
        (entry,) = entries
        page = self._driver.page_size
        if entry.offset < page or entry.offset & (entry.offset - 1):
            raise LookupError(
                f"an alignment of {entry.offset} does not suit {format_page_size(page)} pages"
            )
        here = self._driver.reserve(entry.length, entry.offset)
        self._bases.append((entry.address, entry.length, here))
        self._bases.sort()

    def _release_reservation(self, entries: list[_Entry]) -> None:
        self._driver.release_reservation(self._here(entries[0].address))
        self._bases = [each for each in self._bases if each[0] != entries[0].address]

    def _allocate_slab(self, entries: list[_Entry]) -> None:
        self._slabs[entries[0].slab] = self._driver.allocate_slab(entries[0].length)

    def _free_slab(self, entries: list[_Entry]) -> None:
        self._driver.free_slab(self._slab(entries[0]))
        del self._slabs[entries[0].slab]

    def _map(self, entries: list[_Entry]) -> None:
        self._driver.map(self._batch(entries))

    def _unmap(self, entries: list[_Entry]) -> None:
        self._driver.unmap(self._batch(entries))

    def _zero(self, entries: list[_Entry]) -> None:
        self._driver.zero([(self._here(each.address), each.length) for each in entries])
