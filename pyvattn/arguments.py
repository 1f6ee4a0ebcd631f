# SPDX-License-Identifier: Apache-2.0
"""Checks of arguments. Each raises an error of ours that names argument, value and remedy."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from math import isfinite
from numbers import Real
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, Union, get_args, get_origin, get_type_hints

from pyvattn.errors import ArgumentError, ConfigError
from pyvattn.text import shown
from pyvattn.whole_numbers import whole_number


def check_type(name: str, value: object, *kinds: type) -> None:
    """Raise :class:`~pyvattn.errors.ArgumentError` where ``value`` is none of ``kinds``."""
    if not isinstance(value, kinds):
        wanted = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
        raise ArgumentError(f"{name}={shown(value)}: pass a {wanted}")


def check_callable(name: str, value: object) -> None:
    """Raise :class:`~pyvattn.errors.ArgumentError` for what is neither callable nor None."""
    if value is not None and not callable(value):
        raise ArgumentError(f"{name}={shown(value)}: pass a function, or None")


def check_flag(name: str, value: object) -> None:
    """Raise :class:`~pyvattn.errors.ConfigError` for anything but True and False."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name}={shown(value)}: use True or False")


def check_name(name: str, value: object, such_as: str) -> None:
    """Raise :class:`~pyvattn.errors.ConfigError` for what is no text, or nothing to print."""
    if not isinstance(value, str) or not value.isprintable():
        raise ConfigError(f"{name} {shown(value)}: use a name, such as {such_as!r}")


def check_whole(name: str, value: object, least: int = 0) -> int:
    """Return ``value`` as an int of at least ``least``, or raise ``ConfigError``."""
    number = whole_number(value)
    if number is None or number < least:
        raise ConfigError(f"{name}={shown(value)}: use a whole number from {least}")
    return number


def check_ordinal(name: str, value: object) -> int:
    """Return ``value`` as the number of a device, or raise ``ConfigError``."""
    number = check_whole(name, value)
    if number >= 1 << 31:
        raise ConfigError(f"{name}={shown(number)}: no machine has so many devices")
    return number


def is_number(value: object) -> bool:
    """Return whether ``value`` is a finite number, and neither True nor False."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        return isfinite(value)
    except OverflowError:
        return False


def check_number(name: str, value: object) -> None:
    """Raise :class:`~pyvattn.errors.ConfigError` for anything but a number from 0."""
    if not (is_number(value) and value >= 0):  # type: ignore[operator]
        raise ConfigError(f"{name}={shown(value)}: use a number from 0")


def check_path(name: str, value: object) -> Path:
    """Return ``value`` as a path.

    Raises :class:`~pyvattn.errors.ArgumentError` for what is none, and
    :class:`~pyvattn.errors.ConfigError` for one that no file system takes.
    """
    if not isinstance(value, (str, os.PathLike)):
        raise ArgumentError(f"{name}={shown(value)}: pass a path")
    path = os.fspath(value)
    if not isinstance(path, str):
        raise ArgumentError(f"{name}={shown(value)}: pass a path as text, not as bytes")
    try:
        possible = path != "" and b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        possible = False
    if not possible:
        raise ConfigError(f"{name}={shown(path)}: no file can be called that")
    return Path(path)


class Settings:
    """Base of dataclasses of settings, whose values are checked by their annotations.

    Whole numbers begin where ``least`` of the class says, else at 0 where that is the default
    and at 1 elsewhere.
    """

    _least: ClassVar[Mapping[str, int]] = {}

    def __init_subclass__(cls, least: Mapping[str, int] | None = None) -> None:
        cls._least = least or {}

    def __post_init__(self) -> None:
        """Raise :class:`~pyvattn.errors.ConfigError` for a value that its field cannot have."""
        hints = get_type_hints(type(self))
        for field in fields(self):  # type: ignore[arg-type]  # subclasses are dataclasses
            value, hint = getattr(self, field.name), hints[field.name]
            least = self._least.get(field.name, 0 if field.default == 0 else 1)
            kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
            if not any(_fits(value, kind, least) for kind in kinds):
                wanted = " or ".join(_in_words(kind, least) for kind in kinds)
                raise ConfigError(f"{field.name}={shown(value)}: use {wanted}")


def _fits(value: object, kind: Any, least: int) -> bool:
    if kind is int:
        number = whole_number(value)
        return number is not None and number >= least
    if kind is float:
        return is_number(value) and value >= 0  # type: ignore[operator]
    if get_origin(kind) is Sequence:
        names = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
        return names and all(isinstance(one, str) for one in value)  # type: ignore[attr-defined]
    return isinstance(value, get_origin(kind) or kind)


def _in_words(kind: Any, least: int) -> str:
    if kind is int:
        return f"a whole number from {least}"
    words = {bool: "True or False", float: "a number from 0", str: "text", type(None): "None"}
    return words.get(kind, "a list of names" if get_origin(kind) is Sequence else "a path")
