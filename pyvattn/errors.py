# SPDX-License-Identifier: Apache-2.0
"""Every exception that pyvattn raises on purpose.

All derive from :class:`Error`; each also derives from the built-in class that
describes it best, so that ``except MemoryError`` or ``except ValueError`` work
as well. Messages name the value at fault and the remedy.
"""

from __future__ import annotations

__all__ = [
    "ArgumentError",
    "BlockError",
    "BusyError",
    "CalibrationError",
    "ClosedError",
    "ConfigError",
    "CopyError",
    "DriverError",
    "DriverUnavailable",
    "Error",
    "ExportError",
    "ForkError",
    "LayerError",
    "LedgerBusy",
    "LedgerCorrupt",
    "LedgerError",
    "LedgerFull",
    "LedgerLost",
    "LedgerVersion",
    "LengthError",
    "LimitError",
    "MismatchError",
    "MissingDependency",
    "OutOfMemory",
    "OutOfSlots",
    "PlanWarning",
    "RankError",
    "RowError",
    "SlotError",
    "SpecError",
    "TensorError",
    "TraceError",
    "TransferError",
    "UnsupportedError",
]


class Error(Exception):
    """Base class of all errors of pyvattn."""


class OutOfMemory(Error, MemoryError):
    """The page pool, or the host for a copy, has no room for what was asked; nothing changed.

    Sizes are in bytes: what was asked (``requested``), what is free under the
    limit (``free``), and what released slots still hold (``reclaimable``).
    """

    def __init__(
        self, message: str, requested: int = 0, free: int = 0, reclaimable: int = 0
    ) -> None:
        super().__init__(message)
        self.requested = requested
        self.free = free
        self.reclaimable = reclaimable


class SpecError(Error, ValueError):
    """An impossible :class:`pyvattn.CacheSpec`, or a model config it cannot be read from."""


class ArgumentError(Error, TypeError):
    """An argument of a type that the call cannot take."""


class ConfigError(Error, ValueError):
    """An unknown or unusable driver, page size, layout or option."""


class CalibrationError(ConfigError):
    """A calibration file that cannot be read, or that another machine made."""


class LayerError(Error, IndexError):
    """A layer that the spec does not have."""


class CopyError(Error, TypeError):
    """A cache or a slot that somebody would copy or pickle: both stand for memory of a process."""


class ExportError(Error, BufferError):
    """A tensor that was asked for as DLPack cannot hand it over: copied, or on another device."""


class SlotError(Error, ValueError):
    """A slot that is not live: released, never acquired, of another cache, or named twice."""


class LengthError(SlotError):
    """A length below zero or past the spec's ``max_tokens``."""


class RowError(Error, ValueError):
    """A row of a :class:`pyvattn.RowMap` that is not open, or positions that it does not have."""


class BlockError(Error, ValueError):
    """A block that its :class:`pyvattn.BlockPool` has not handed out, or that was released."""


class OutOfSlots(Error):
    """All ``max_slots`` slots are live, or all rows of a row map open."""


class LimitError(Error, ValueError):
    """A memory limit that the cache cannot go to, such as one below what live slots hold."""


class ClosedError(Error, RuntimeError):
    """The cache was closed."""


class BusyError(Error, RuntimeError):
    """Another thread is inside ``step`` of the same cache, or memory is still held."""


class ForkError(Error, RuntimeError):
    """The cache belongs to the parent process; a forked child cannot use it."""


class DriverError(Error, RuntimeError):
    """A driver call failed; everything it had begun was rolled back.

    ``operation`` is the call, ``address`` and ``size`` (bytes) where, and
    ``status`` the driver's own status code by name.
    """

    def __init__(
        self,
        message: str,
        operation: str = "",
        address: int = 0,
        size: int = 0,
        status: str = "",
    ) -> None:
        super().__init__(message)
        self.operation = operation
        self.address = address
        self.size = size
        self.status = status


class DriverUnavailable(Error, RuntimeError):
    """This machine cannot offer the driver that was asked for; the message says why."""


class LedgerError(Error, RuntimeError):
    """A ledger of shared memory that cannot be used; the message names its file."""


class LedgerCorrupt(LedgerError):
    """The file holds something else than a ledger, or a damaged one."""


class LedgerVersion(LedgerError):
    """The ledger was made by a release of pyvattn that this one does not understand."""


class LedgerLost(LedgerError):
    """The ledger was truncated, replaced or reset while in use: what is held stays."""


class LedgerFull(LedgerError):
    """No slot of the ledger is free, or the guarantees would sum to more than its budget."""


class LedgerBusy(LedgerError):
    """Another process has been joining for a second, or members are alive."""


class TraceError(Error, ValueError):
    """A request trace that cannot be read."""


class RankError(Error, RuntimeError):
    """A process that runs a model together with this one is gone, or they are out of step."""


class TransferError(Error, RuntimeError):
    """A slot that another process did not send, refused, or was not there for any more."""


class TensorError(Error, ValueError):
    """A tensor whose shape, dtype or device does not fit the cache."""


class UnsupportedError(Error, NotImplementedError):
    """Things that exist on their own but not together, such as a kernel and a dtype."""


class MissingDependency(Error, ImportError):
    """An optional package is not installed; the message says how to install it."""


class MismatchError(Error):
    """A self-check found another result than the reference gave."""


class PlanWarning(UserWarning):
    """A page size or layout that was asked for by name and that the planner would refuse."""
