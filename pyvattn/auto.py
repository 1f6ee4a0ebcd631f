# SPDX-License-Identifier: Apache-2.0
"""What ``driver="auto"`` means: what the environment names, or else the best that is there."""

from __future__ import annotations

import os
from collections.abc import Callable

from pyvattn.errors import DriverUnavailable
from pyvattn.logs import logger_of

_log = logger_of(__name__)

VARIABLE = "PYVATTN_DRIVER"

# On a CUDA device, best first. Never stock-uvm, which relies on what no interface promises,
# and never the host: that would hide what is wrong.
ON_CUDA = ("patched", "cumem")
ON_CPU = ("host",)


def named_by_environment() -> str | None:
    """Return the driver that the environment names for "auto", or None."""
    return os.environ.get(VARIABLE) or None


def first_available(on_cuda: bool, ask: Callable[[str], object]) -> str:
    """Return the first driver that ``ask`` does not refuse.

    ``ask`` raises :class:`~pyvattn.errors.DriverUnavailable` to refuse; where it
    refuses all, what it said of the last is raised.
    """
    *better, last = ON_CUDA if on_cuda else ON_CPU
    for name in better:
        try:
            ask(name)
        except DriverUnavailable as error:
            _log.debug("driver %s is passed over: %s", name, error)
            continue
        return name
    ask(last)
    return last
