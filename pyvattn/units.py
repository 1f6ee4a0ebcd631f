# SPDX-License-Identifier: Apache-2.0
"""Sizes as people write them: ``"60GiB"``, ``"64K"``, ``"2M"``.

Suffixes are binary whatever their spelling: K, KB and KiB are all 1,024 bytes,
as page sizes and GPU memory are quoted.
"""

from __future__ import annotations

import re
from fractions import Fraction

from pyvattn.errors import ConfigError
from pyvattn.text import shown
from pyvattn.whole_numbers import whole_number

_FACTORS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_END = 1 << 64
# Beyond it a number of digits tells nobody anything.
_MOST_SHOWN = 1000 << 40
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)


def parse_size(value: int | str, what: str = "size") -> int:
    """Return the number of bytes that ``value`` stands for.

    Integers pass through. Raises :class:`~pyvattn.errors.ConfigError`, naming
    ``what``, for anything that is not a positive whole number of bytes.
    """
    number = whole_number(value)
    if number is None and not isinstance(value, str):
        raise ConfigError(f"{what} {shown(value)}: give bytes as an int, or text such as '60GiB'")
    size = _parse_text(value, what) if isinstance(value, str) else Fraction(number or 0)
    if size <= 0 or size.denominator != 1:
        raise ConfigError(f"{what} {shown(value)} is not a positive whole number of bytes")
    if size >= _END:
        raise ConfigError(f"{what} {shown(value)} is more bytes than 64 bits count: lower it")
    return int(size)


def _parse_text(text: str, what: str) -> Fraction:
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(
            f"{what} {text!r} is not a size: write a number with an optional K, M, G or T, "
            "such as '64K', '2M' or '60GiB'"
        )
    number, suffix = match.groups()
    return Fraction(number) * _FACTORS[suffix.upper()]


def format_page_size(size: int) -> str:
    """Return ``size`` bytes the way page sizes are named: ``64K``, ``2M``."""
    for suffix in ("G", "M", "K"):
        if size % _FACTORS[suffix] == 0 and size > 0:
            return f"{size // _FACTORS[suffix]}{suffix}"
    return str(size)


def format_size(size: float) -> str:
    """Return ``size`` bytes for people to read, with three digits: ``1.25 GiB``."""
    if size >= _MOST_SHOWN:
        return f"more than {format_size(_MOST_SHOWN - 1)}"
    for suffix in ("T", "G", "M", "K"):
        scaled = size / _FACTORS[suffix]
        if abs(scaled) >= 1:
            digits = 0 if abs(scaled) >= 100 else 1 if abs(scaled) >= 10 else 2
            return f"{scaled:.{digits}f} {suffix}iB"
    return f"{size:.0f} B"
