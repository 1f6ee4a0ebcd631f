# SPDX-License-Identifier: Apache-2.0
"""NVTX ranges for a profiler, where ``PYVATTN_NVTX`` asks for them; without it there is nothing.

``1`` looks for a library of NVTX: the packages that CUDA builds of torch bring, then the system's.
Anything else is the file of one.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from functools import cache, wraps
from pathlib import Path
from typing import Any, TypeVar, cast

from pyvattn import _native
from pyvattn.errors import ConfigError, MissingDependency

_ASKED = os.environ.get("PYVATTN_NVTX", "0")
_NAMES = ("libnvtx3interop.so.1", "libnvToolsExt.so.1")

_Call = TypeVar("_Call", bound=Callable[..., Any])


def ranged(name: str) -> Callable[[_Call], _Call]:
    """Decorate a function whose calls are to be seen as ranges; it stays what it is otherwise."""

    def mark(function: _Call) -> _Call:
        if not _is_wanted():
            return function
        text = name.encode()

        @wraps(function)
        def marked(*args: Any, **kwargs: Any) -> Any:
            nvtx = _library()
            nvtx.nvtxRangePushA(text)
            try:
                return function(*args, **kwargs)
            finally:
                nvtx.nvtxRangePop()

        return cast("_Call", marked)

    return mark


def ranged_driver(driver: _native.Driver) -> _native.Driver:
    """Return a driver whose map, unmap and zero are seen as ranges, in whatever thread they run.

    Raises :class:`~pyvattn.errors.ConfigError` for a library that cannot be used, and
    :class:`~pyvattn.errors.MissingDependency` where there is none.
    """
    return _native.RangesAdaptor(driver, _path()) if _is_wanted() else driver


def _is_wanted() -> bool:
    return _ASKED not in ("", "0")


@cache
def _library() -> ctypes.CDLL:
    try:
        return ctypes.CDLL(_path())
    except OSError as error:
        raise ConfigError(f"PYVATTN_NVTX={_ASKED}: {error}") from error


@cache
def _path() -> str:
    """Return what the loader is to load."""
    if _ASKED != "1":
        return _ASKED
    packaged = [Path(folder) / "nvidia" for folder in sys.path]
    for name in _NAMES:
        for folder in packaged:
            for found in sorted(folder.glob(f"*/lib/{name}")):
                return str(found)
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return name
    raise MissingDependency(
        f"PYVATTN_NVTX=1 needs {' or '.join(_NAMES)}: pip install nvidia-nvtx, or name the file, "
        "PYVATTN_NVTX=/path/to/it"
    )
