# SPDX-License-Identifier: Apache-2.0
"""Exit codes, and which errors mean which."""

from __future__ import annotations

from enum import IntEnum

from pyvattn import errors


class Exit(IntEnum):
    """What the command's exit status means; shown by ``pyvattn --help``."""

    OK = 0
    CHECK_FAILED = 1
    BAD_INPUT = 2
    UNAVAILABLE = 3
    FAILED = 4


MEANINGS = {
    Exit.OK: "done",
    Exit.CHECK_FAILED: "it ran, and a check failed",
    Exit.BAD_INPUT: "bad usage or input",
    Exit.UNAVAILABLE: "a driver, device, package or ledger is not available here",
    Exit.FAILED: "out of memory, or a driver call failed",
}

_BY_ERROR: tuple[tuple[type[BaseException], Exit], ...] = (
    (errors.MismatchError, Exit.CHECK_FAILED),
    (errors.DriverUnavailable, Exit.UNAVAILABLE),
    (errors.LedgerError, Exit.UNAVAILABLE),
    (errors.MissingDependency, Exit.UNAVAILABLE),
    (errors.OutOfMemory, Exit.FAILED),
    (errors.DriverError, Exit.FAILED),
    (ValueError, Exit.BAD_INPUT),
    (OSError, Exit.BAD_INPUT),
)


def exit_code(error: BaseException) -> Exit:
    """Return the exit code that ``error`` stands for."""
    return next((code for kind, code in _BY_ERROR if isinstance(error, kind)), Exit.FAILED)
