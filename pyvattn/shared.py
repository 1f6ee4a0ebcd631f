# SPDX-License-Identifier: Apache-2.0
"""Memory that several processes share: leases from a ledger, and looking at one.

``docs/elastic.md`` says how it works and what an operator does with it.
"""

from __future__ import annotations

import math
import os
import stat
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pyvattn import _native, cuda
from pyvattn.arguments import check_type, is_number
from pyvattn.errors import ConfigError, LedgerError, OutOfMemory
from pyvattn.resolve import check_device
from pyvattn.text import printable, shown
from pyvattn.units import format_size, parse_size

__all__ = [
    "Ledger",
    "Member",
    "SharedMemory",
    "create_ledger",
    "ledger_path",
    "limit_member",
    "read_ledgers",
    "reset_ledger",
]

_Self = TypeVar("_Self", bound="SharedMemory")
_CPU = "CPU-00000000-0000-0000-0000-000000000000"
"""The host's memory has no UUID: this stands for one."""
_CHUNK = 32 << 20
_WEIGHTS_TIMEOUT_S = 60.0
_DRIVER_COOLING_MS = 5000
"""How long a GPU's driver may take to free what a killed process held."""


class SharedMemory(_native.Lease):
    """A lease on memory of one device that the processes of one user share; a budget.

    Pass it as the ``memory`` of caches and block pools, or write ``memory="shared"``. What
    they hold is leased first, so an allocation under it does not fail. It takes what is free,
    and asks neighbours for what they hold beyond their part; it gives back what it can spare
    where they ask. ``guarantee`` is always its own, in bytes or as text; what is beyond all
    guarantees is divided by ``weight`` where more is wanted than there is.

    The first process gives the ``budget``, or the environment does in
    ``PYVATTN_SHARED_BUDGET``; on a GPU it may be left out: nine tenths of what is free then.
    ``name`` is what ``pyvattn top`` shows. In bytes: ``limit``, ``held``, ``headroom``,
    ``leased``, ``target``, ``budget``; ``owed`` is what running requests hold and members below
    their guarantees wait for, ``reach`` the most that it can come to hold. ``want`` says what
    waiting requests need beyond what is held, until it is called again.

    ``weights`` are bytes for what is no cache's: weights, say. They are leased and counted as
    held before this returns, so that they can be allocated then, and guaranteed beside
    ``guarantee``, so that neighbours make room for them, by ending requests if need be, and never
    ask for them. ``timeout`` is how many seconds that may take. An engine that sleeps calls
    ``return_weights`` once their memory is free, and ``claim_weights`` before it loads them again.

    Raises :class:`~pyvattn.errors.LedgerError` and those derived from it (``LedgerFull`` where
    guarantees and weights of all are more than the budget),
    :class:`~pyvattn.errors.OutOfMemory` where neighbours do not make room in time, and
    :class:`~pyvattn.errors.ConfigError`. Close it after what it was given to and after the weights
    are freed, or use it in a with statement.
    """

    _weights = 0
    _weights_size = 0

    def __init__(
        self,
        device: str = "cuda",
        *,
        budget: int | str | None = None,
        guarantee: int | str = 0,
        weight: float = 1.0,
        name: str | None = None,
        chunk_size: int | str = _CHUNK,
        weights: int | str = 0,
        timeout: float = _WEIGHTS_TIMEOUT_S,
    ) -> None:
        device = check_device(device)
        label = f"pid-{os.getpid()}" if name is None else name
        check_type("name", label, str)
        if not 0 < len(label.encode("utf-8", "replace")) < 64 or printable(label) != label:
            raise ConfigError(f"name {shown(name)}: use 1 to 63 bytes of printable text")
        if not is_number(weight) or not 0.001 <= weight <= 1000:
            raise ConfigError(f"weight {shown(weight)}: use a number from 0.001 to 1000")
        _check_timeout(timeout)
        kept = _size_or_none("guarantee", guarantee)
        beside = _size_or_none("weights", weights)
        path = ledger_path(device)
        super().__init__(
            path=str(path),
            device=_device_name(device),
            budget=_budget_of(budget, device, path),
            chunk_bytes=parse_size(chunk_size, "chunk_size"),
            name=label,
            guarantee=kept + beside,
            weight=round(weight * 1000),
            version=_version(),
            cooling_ms=0 if device == "cpu" else _DRIVER_COOLING_MS,
        )
        self._weights_size = beside
        if beside:
            try:
                self.claim_weights(timeout)
            except BaseException:
                self.close()
                raise

    @property
    def weights(self) -> int:
        """Bytes that are leased for weights now; they are part of what is held."""
        return self._weights

    @property
    def weights_size(self) -> int:
        """Bytes that were asked for as ``weights``, leased or not."""
        return self._weights_size

    @property
    def reach(self) -> int:
        """Most bytes that caches and pools under it can come to hold."""
        return max(0, super().reach - self._weights_size)

    @property
    def budget(self) -> int:
        """Bytes that all members share."""
        return _native.Ledger(self.path).look().chunks * self.chunk_bytes

    def wait_for(self, memory: int | str, timeout: float) -> bool:
        """Ask for so many bytes and wait up to ``timeout`` seconds; say whether they are leased.

        Raises :class:`~pyvattn.errors.LedgerLost`, :class:`~pyvattn.errors.ClosedError` and
        :class:`~pyvattn.errors.ForkError`.
        """
        _check_timeout(timeout)
        return self.wait(parse_size(memory, "memory"), int(timeout * 1000))

    def return_weights(self) -> None:
        """Return what is leased for weights, whose memory must be free.

        It stays guaranteed: ``set_limit`` to what is still held lends it to others.
        """
        self.return_bytes(self._weights)
        self._weights = 0

    def claim_weights(self, timeout: float = _WEIGHTS_TIMEOUT_S) -> None:
        """Lease ``weights_size`` bytes again, within ``timeout`` seconds, if they are not leased.

        The limit must leave room for them. Raises :class:`~pyvattn.errors.OutOfMemory` where
        neighbours do not make room in time.
        """
        _check_timeout(timeout)
        if not self._weights and self._weights_size:
            self._take_weights(self._weights_size, timeout)

    def close(self) -> None:
        """Leave the ledger. Raises BusyError while caches or pools under it hold something."""
        # Where it does they stay leased: the weights may be there still.
        if not self.inherited and 0 < self._weights == self.held:
            self.return_bytes(self._weights)
            self._weights = 0
        super().close()

    def _take_weights(self, size: int, timeout: float) -> None:
        # They are guaranteed, but what is held already may stand in their place.
        end = time.monotonic() + timeout
        while not self.take(size):
            left = end - time.monotonic()
            if left <= 0:
                raise OutOfMemory(
                    f"weights of {format_size(size)}: {format_size(self.leased)} were leased "
                    f"within {timeout:g} seconds, and neighbours hold the rest of the "
                    f"{format_size(self.budget)} that all share (`pyvattn top` shows them): wait "
                    "longer, or end one",
                    requested=size,
                )
            self.wait(size, math.ceil(left * 1000))
        self._weights = size

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        if self.inherited:
            return "<SharedMemory of the parent process>"
        if self.closed:
            return "<SharedMemory, closed>"
        return (
            f"<SharedMemory {self.name!r}, {format_size(self.leased)} leased, "
            f"{format_size(self.held)} held{', ledger lost' if self.lost else ''}>"
        )


@dataclass(frozen=True)
class Member:
    """A live member of a ledger. All sizes are in bytes; ``limit`` is None where none is set.

    ``readable`` is False where what it wrote of itself is damaged.
    """

    name: str
    pid: int
    version: str
    weight: float
    guarantee: int
    lease: int
    used: int
    demand: int
    wanted: int
    target: int
    limit: int | None
    readable: bool


@dataclass(frozen=True)
class Ledger:
    """What a ledger says at one moment, in bytes.

    ``cooling`` is what dead members held until a moment ago, ``unknown`` what nobody can
    account for yet; neither is free.
    """

    path: str
    device: str
    chunk: int
    budget: int
    free: int
    cooling: int
    unknown: int
    members: tuple[Member, ...]


def ledger_path(device: str = "cuda") -> Path:
    """Return the file of a device's ledger, in a folder that only this user can read.

    The folder is ``$PYVATTN_RUNTIME_DIR``, ``$XDG_RUNTIME_DIR/pyvattn`` or
    ``/dev/shm/pyvattn-UID``: mount it in every container that shares the device.
    """
    return _folder() / f"ledger-{_device_name(check_device(device))}"


def create_ledger(
    device: str = "cuda", *, budget: int | str, chunk_size: int | str = _CHUNK
) -> Path:
    """Make a device's ledger, or find that the same is there; return its path."""
    path = ledger_path(device)
    size, chunk = parse_size(budget, "budget"), parse_size(chunk_size, "chunk_size")
    _native.create_ledger(str(path), _device_name(check_device(device)), size, chunk)
    return path


def reset_ledger(device: str = "cuda") -> Path:
    """Remove a device's ledger, whatever the file holds; return its path.

    Raises :class:`~pyvattn.errors.LedgerBusy` while a member is alive.
    """
    path = ledger_path(device)
    _native.remove_ledger(str(path))
    return path


def read_ledgers() -> list[Ledger]:
    """Return what every ledger of this user says now, without joining."""
    return [_read(_native.Ledger(str(path)), path) for path in _paths()]


def limit_member(member: str, memory: int | str | None) -> Member:
    """Let a member hold no more than ``memory``, or as much as it likes for None.

    ``member`` is its name or its process id. It gives back what it can spare at once, and
    the rest when requests end. A limit below its guarantee frees that for others too. Raises
    :class:`~pyvattn.errors.ConfigError` where no member or more than one is called so.
    """
    check_type("member", member, str)
    size = None if memory is None else parse_size(memory, "memory")
    found = []
    for path in _paths():
        ledger = _native.Ledger(str(path))
        look = ledger.look()
        found += [
            (ledger, each, look.chunks)
            for each in look.members
            if member in (_text(each.name), str(each.pid))
        ]
    if len(found) != 1:
        called = f"{len(found)} members are" if found else "no member is"
        raise ConfigError(
            f"{called} called {shown(member)}: name one that `pyvattn top` shows, by its process "
            "id where names are alike"
        )
    ledger, each, chunks = found[0]
    ledger.limit(
        each.slot,
        each.generation,
        None if size is None else min(size // ledger.chunk_bytes, chunks),
    )
    return _member(each, ledger.chunk_bytes, chunks)


def own_limit(lease: SharedMemory) -> int:
    """Return the most bytes that an operator lets a member of this process hold."""
    look = _native.Ledger(lease.path).look()
    own = (each for each in look.members if each.pid == os.getpid())
    limits = [each.limit for each in own if _text(each.name) == lease.name]
    return min(limits, default=look.chunks) * lease.chunk_bytes


def _check_timeout(timeout: object) -> None:
    if not is_number(timeout) or not 0 <= timeout < 1 << 32:  # type: ignore[operator]
        raise ConfigError(f"timeout {shown(timeout)}: use seconds, 0 for a look")


def _size_or_none(name: str, value: int | str) -> int:
    return 0 if is_number(value) and value == 0 else parse_size(value, name)


def _paths() -> list[Path]:
    return sorted(path for path in _folder().glob("ledger-*") if ".new-" not in path.name)


def _read(ledger: _native.Ledger, path: Path) -> Ledger:
    look, chunk = ledger.look(), ledger.chunk_bytes
    return Ledger(
        path=str(path),
        device=ledger.device,
        chunk=chunk,
        budget=look.chunks * chunk,
        free=look.free * chunk,
        cooling=look.cooling * chunk,
        unknown=(look.unknown + look.not_ours) * chunk,
        members=tuple(_member(each, chunk, look.chunks) for each in look.members),
    )


def _member(each: _native.LedgerMember, chunk: int, chunks: int) -> Member:
    return Member(
        name=_text(each.name),
        pid=each.pid,
        version=_text(each.version),
        weight=each.weight / 1000,
        guarantee=each.guarantee * chunk,
        lease=each.lease * chunk,
        used=each.used_bytes,
        demand=each.demand * chunk,
        wanted=each.wanted * chunk,
        target=each.target * chunk,
        limit=None if each.limit == chunks else each.limit * chunk,
        readable=each.readable,
    )


def _text(name: bytes) -> str:
    return printable(name.decode("utf-8", "replace"))


def _folder() -> Path:
    """Return the runtime folder, made where it is missing."""
    if named := os.environ.get("PYVATTN_RUNTIME_DIR"):
        folder = Path(named)
    elif session := os.environ.get("XDG_RUNTIME_DIR"):
        folder = Path(session) / "pyvattn"
    else:
        folder = Path(f"/dev/shm/pyvattn-{os.getuid()}")
    try:
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        status = folder.lstat()
    except OSError as error:
        raise LedgerError(
            f"runtime folder {folder}: {error.strerror}: set PYVATTN_RUNTIME_DIR to one on tmpfs"
        ) from error
    if (
        not stat.S_ISDIR(status.st_mode)
        or status.st_uid != os.geteuid()
        or stat.S_IMODE(status.st_mode) & 0o077
    ):
        raise LedgerError(
            f"runtime folder {folder} must be a folder of this user with mode 0700, and no link: "
            "chmod it, or set PYVATTN_RUNTIME_DIR to another"
        )
    return folder


def _device_name(device: str) -> str:
    if device == "cpu":
        return _CPU
    devices = cuda.devices()
    ordinal = _ordinal(device)
    if ordinal >= len(devices):
        raise ConfigError(f"device {device!r}: this machine has {len(devices)} CUDA devices")
    return devices[ordinal].uuid


def _ordinal(device: str) -> int:
    return int(device.partition(":")[2] or 0)


def _budget_of(budget: int | str | None, device: str, path: Path) -> int:
    """Return the bytes that the ledger is to have, 0 where it is there and says them itself."""
    if budget is not None:
        return parse_size(budget, "budget")
    if path.exists():
        return 0
    if named := os.environ.get("PYVATTN_SHARED_BUDGET"):
        return parse_size(named, "PYVATTN_SHARED_BUDGET")
    if device == "cpu":
        raise ConfigError(
            "no process shares the host's memory yet: give the budget once, in SharedMemory("
            "budget=…), PYVATTN_SHARED_BUDGET or `pyvattn ledger create`"
        )
    return cuda.memory(_ordinal(device)).free * 9 // 10


def _version() -> str:
    from importlib.metadata import version

    return version("pyvattn")[:15]
