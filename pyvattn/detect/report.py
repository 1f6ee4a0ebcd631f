# SPDX-License-Identifier: Apache-2.0
"""What detection says of one driver."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DriverReport:
    """Whether this machine offers a driver, and the reason in one line either way.

    ``page_sizes`` are in bytes and empty where the driver is not available;
    ``advice`` says what would help, or how to ask for it. ``peers`` are the other CUDA
    devices that can be given access to its memory, by ordinal.
    """

    name: str
    available: bool
    reason: str
    page_sizes: tuple[int, ...] = ()
    advice: str = ""
    peers: tuple[int, ...] = ()
