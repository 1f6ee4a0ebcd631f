# SPDX-License-Identifier: Apache-2.0
"""The rows of a trace file, in the formats that people have.

- Azure LLM inference traces: CSV with ``TIMESTAMP, ContextTokens,
  GeneratedTokens``. A time without an offset is UTC.
- Lengths alone, as in the vAttention evaluation: CSV with
  ``num_prefill_tokens, num_decode_tokens``; Vidur's files have ``arrived_at`` as
  well, in seconds.
- BurstGPT: CSV with ``Timestamp`` (seconds), ``Request tokens, Response tokens``.
- Mooncake: a JSON object a line with ``timestamp`` (milliseconds),
  ``input_length`` and ``output_length``. The Qwen-Bailian traces have the same
  names, a ``chat_id``, and seconds. What else a line holds is left aside.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pyvattn.errors import TraceError
from pyvattn.files import read_text
from pyvattn.text import printable, shown

# Traces of a million requests have some 100 MB.
_MOST_BYTES = 4 << 30

# Times from here on, in ms or s, are mistakes, and so are lengths.
_NO_TIME = 1e15
_MOST_TOKENS = 2**31 - 1

# Python 3.10 reads three or six digits of a second and no Z; traces have seven.
_MOMENT = re.compile(r"(.+?)(?:\.(\d+))?(Z|[+-]\d\d:?\d\d)?", re.ASCII)


@dataclass(frozen=True)
class Row:
    """One request: when it came, in ns from some moment, or ``None``; and two lengths.

    A float of the seconds since 1970 would be too coarse.
    """

    line: int
    nanoseconds: int | None
    prompt: int
    generated: int


def read_rows(file: Path) -> list[Row]:
    """Return the rows of ``file`` in its own order.

    Raises :class:`~pyvattn.errors.TraceError`, naming the line, for what cannot
    be read; ``FileNotFoundError`` is left to the caller.
    """
    try:
        text = read_text(file, _MOST_BYTES)
        if not text.strip():
            raise ValueError("it is empty")
        if text.lstrip().startswith("{"):
            # Not splitlines(): JSON may hold other ends of lines inside strings.
            return list(_json_rows(text.split("\n"), file.name))
        return list(_csv_rows(csv.DictReader(io.StringIO(text, newline="")), file.name))
    except TraceError:
        raise
    except (ValueError, csv.Error) as error:
        raise TraceError(
            f"{printable(str(file))} is not a trace ({error}): name a CSV or JSON-lines file"
        ) from error


def _csv_rows(reader: csv.DictReader[str], name: str) -> Iterator[Row]:
    columns = reader.fieldnames or []
    for needed, read in _CSV.items():
        if set(needed) <= set(columns):
            return (read(row, f"{name}, line {reader.line_num}", reader.line_num) for row in reader)
    known = "; or ".join(", ".join(needed) for needed in _CSV)
    raise TraceError(
        f"{name} has none of the known headers ({known}) but {', '.join(columns) or 'none'}"
    )


def _azure(row: Mapping[str, str | None], where: str, line: int) -> Row:
    prompt, generated = _tokens(row, "ContextTokens", where), _tokens(row, "GeneratedTokens", where)
    return Row(line, _moment(row["TIMESTAMP"] or "", where), prompt, generated)


def _lengths(row: Mapping[str, str | None], where: str, line: int) -> Row:
    prompt = _tokens(row, "num_prefill_tokens", where)
    return Row(line, None, prompt, _tokens(row, "num_decode_tokens", where))


def _vidur(row: Mapping[str, str | None], where: str, line: int) -> Row:
    lengths = _lengths(row, where, line)
    return replace(lengths, nanoseconds=_seconds(row, "arrived_at", where))


def _burst(row: Mapping[str, str | None], where: str, line: int) -> Row:
    prompt = _tokens(row, "Request tokens", where)
    generated = _tokens(row, "Response tokens", where)
    return Row(line, _seconds(row, "Timestamp", where), prompt, generated)


# The first whose columns are all there.
_CSV: dict[tuple[str, ...], Callable[[Mapping[str, str | None], str, int], Row]] = {
    ("TIMESTAMP", "ContextTokens", "GeneratedTokens"): _azure,
    ("Timestamp", "Request tokens", "Response tokens"): _burst,
    ("arrived_at", "num_prefill_tokens", "num_decode_tokens"): _vidur,
    ("num_prefill_tokens", "num_decode_tokens"): _lengths,
}


def _json_rows(lines: Iterable[str], name: str) -> Iterator[Row]:
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        where = f"{name}, line {number}"
        try:
            row = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise TraceError(f"{where} is not a JSON object: {error}") from error
        if not isinstance(row, dict):
            raise TraceError(f"{where} is not a JSON object")
        prompt, generated = (
            _length(row, "input_length", where),
            _length(row, "output_length", where),
        )
        yield Row(number, _timestamp(row, where), prompt, generated)


def _moment(text: str, where: str) -> int:
    parts = _MOMENT.fullmatch(text.strip())
    try:
        if parts is None:
            raise ValueError
        whole, fraction, offset = parts.groups()
        moment = datetime.fromisoformat(whole).replace(tzinfo=timezone.utc)
        zone = datetime.strptime((offset or "Z").replace(":", ""), "%z").utcoffset()
        assert zone is not None
        seconds = int((moment - zone).timestamp())
    except (ValueError, OverflowError):  # the latter at either end of the calendar
        raise TraceError(f"{where}: TIMESTAMP {text!r} is not a time") from None
    return seconds * 10**9 + int(f"{fraction or 0:0<9}"[:9])


def _seconds(row: Mapping[str, str | None], column: str, where: str) -> int:
    text = (row[column] or "").strip()
    try:
        return _nanoseconds(float(text), 10**9)
    except ValueError:
        raise TraceError(f"{where}: {column} {text!r} is not a number of seconds") from None


def _nanoseconds(value: float, unit: int) -> int:
    """Return a time in units of ``unit`` ns; raises ValueError for one that no clock shows."""
    if not abs(value) < _NO_TIME:
        raise ValueError
    return round(value * unit)


def _timestamp(row: Mapping[str, Any], where: str) -> int:
    value = row.get("timestamp")
    try:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError
        return _nanoseconds(value, 10**9 if "chat_id" in row else 10**6)
    except ValueError:
        raise TraceError(f"{where}: timestamp {shown(value)} is not a time") from None


def _length(row: Mapping[str, Any], name: str, where: str) -> int:
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MOST_TOKENS:
        raise _no_tokens(name, value, where)
    return value


def _tokens(row: Mapping[str, str | None], column: str, where: str) -> int:
    text = (row[column] or "").strip()
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= _MOST_TOKENS:
        raise _no_tokens(column, text, where)
    return int(text)


def _no_tokens(name: str, value: Any, where: str) -> TraceError:
    return TraceError(f"{where}: {name} {value!r} is not a number of tokens from 1")
