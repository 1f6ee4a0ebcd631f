# SPDX-License-Identifier: Apache-2.0
"""Asks the native core which drivers it can offer here. Only the core opens devices."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from pyvattn.errors import DriverUnavailable

Ask = Callable[[str], tuple[int, ...]]
"""Returns the page sizes (bytes) of a driver, or raises ``DriverUnavailable`` with the reason."""


# Only when it is open can the patched module be asked about one GPU; `auto` relies on the answer.
_OPENED = ("patched",)


def ask_core(device: int = 0) -> Ask:
    """Return the question to the core, about CUDA device number ``device``."""

    def ask(driver: str) -> tuple[int, ...]:
        try:
            native = import_module("pyvattn._native")
        except ImportError as error:
            raise DriverUnavailable(f"the native core cannot be loaded: {error}") from error
        if driver not in native.driver_names():
            raise DriverUnavailable(f"this build of pyvattn has no {driver} driver")
        sizes = tuple(native.driver_capabilities(driver, device).page_sizes)
        if driver in _OPENED:
            native.make_driver(driver, min(sizes), device)
        return sizes

    return ask
