# SPDX-License-Identifier: Apache-2.0
"""Asks the native core which drivers it can offer here. Only the core opens devices."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import NamedTuple

from pyvattn.errors import DriverUnavailable


class Offer(NamedTuple):
    """What the core can offer of a driver.

    ``page_sizes`` are in bytes; ``peers`` are the other CUDA devices that can be given access
    to its memory.
    """

    page_sizes: tuple[int, ...]
    peers: tuple[int, ...] = ()


Ask = Callable[[str], Offer]
"""Returns what the core can offer of a driver, or raises ``DriverUnavailable`` with the reason."""


# Only when it is open can the patched module be asked about one GPU; `auto` relies on the answer.
_OPENED = ("patched",)


def ask_core(device: int = 0) -> Ask:
    """Return the question to the core, about CUDA device number ``device``."""

    def ask(driver: str) -> Offer:
        try:
            native = import_module("pyvattn._native")
        except ImportError as error:
            raise DriverUnavailable(f"the native core cannot be loaded: {error}") from error
        if driver not in native.driver_names():
            raise DriverUnavailable(f"this build of pyvattn has no {driver} driver")
        found = native.driver_capabilities(driver, device)
        if driver in _OPENED:
            native.make_driver(driver, min(found.page_sizes), device)
        return Offer(tuple(found.page_sizes), tuple(found.peers))

    return ask
