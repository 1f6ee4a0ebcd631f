# SPDX-License-Identifier: Apache-2.0
"""What is being installed, written down before anything is touched.

The record names every file with its checksum before and after, and every
directory that is made. As long as it exists, whatever was interrupted can be
undone: each file is either as it was, or ours, or half-written under a name of
its own. The record is removed last.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from driver_patch.install.kmod import run_depmod
from driver_patch.install.machine import BadInput, Failed, InstallerError, Machine, Refused

_VERSION = 3
_FOLDER = "var/lib/pyvattn/driver"
_PARTIAL_SUFFIX = ".pyvattn-new"

#: The name of the journal of what is changed for DKMS; the others are named after kernels.
DKMS_JOURNAL = "dkms"

INSTALLING = "installing"
INSTALLED = "installed"
UNINSTALLING = "uninstalling"


@dataclass(frozen=True)
class Entry:
    """One file of ours, with the checksum of what was there before ("" where nothing was)."""

    path: Path
    sha256: str
    before: str
    backup: Path


@dataclass(frozen=True)
class Record:
    """What the journal says.

    ``about`` names the release, the stock module and so on. With ``depmod`` in it, depmod has to
    see what changed.
    """

    state: str
    entries: tuple[Entry, ...]
    directories: tuple[Path, ...]
    about: dict[str, str]


class Journal:
    """The record of one install, by default the kernel's, and the files that it speaks of."""

    def __init__(self, machine: Machine, name: str = "") -> None:
        self._machine = machine
        self._home = machine.path(f"{_FOLDER}/{name or machine.kernel}")
        self._path = self._home / "manifest.json"

    def read(self) -> Record | None:
        """Return the record, or None where nothing of ours is installed.

        Raises:
            Failed: there is one, and it cannot be read.
        """
        try:
            return self._parse(json.loads(self._path.read_text()))
        except FileNotFoundError:
            return None
        except PermissionError as error:
            raise Failed(f"{self._path}: cannot be read: run this as root") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Failed(
                f"{self._path}: cannot be understood ({error}). What is installed lies in "
                f"{self._machine.modules / 'updates/pyvattn'} and in /etc/depmod.d/pyvattn-*.conf; "
                "remove these by hand, then this record, and run depmod."
            ) from error

    def apply(
        self, files: Mapping[Path, bytes], about: dict[str, str], check: Callable[[], None] | None
    ) -> None:
        """Write ``files`` and call ``check``; if anything fails, undo it all.

        Raises:
            Failed: everything is as before, or the message says what is not.
        """
        for path in files:
            self._stay_inside(path)
        try:
            self._begin(files, about)
            for path, data in files.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                _write(path, data)
            self._settle(about)
            if check:
                check()
            self._mark(INSTALLED)
        except BaseException as error:
            try:
                self._undo()
            except (OSError, InstallerError) as second:
                raise Failed(
                    f"{error}. Undoing it failed as well: {second}. NVIDIA's module was not "
                    "touched; run the uninstall when the cause is removed, it goes on from here."
                ) from error
            if isinstance(error, (OSError, InstallerError)):
                raise Failed(f"{error}. Everything is as it was before.") from error
            raise

    def undo(self) -> None:
        """Give every file its former state and forget; may be repeated after a failure.

        Raises:
            Refused: a file was changed since; it was not touched.
            Failed: a step failed; what is left is still written down.
        """
        try:
            if self.read() is None:
                self.sweep()
                return
            self._mark(UNINSTALLING)
            self._undo()
        except (OSError, Failed) as error:
            raise Failed(f"{error}. Repeat the uninstall; it goes on from here.") from error

    def is_intact(self, record: Record) -> bool:
        """Whether every file is as we wrote it."""
        return all(_sha256(entry.path) == entry.sha256 for entry in record.entries)

    def require_ours(self, record: Record) -> None:
        """Check that every file is ours or as before.

        Raises:
            Refused: one was changed since.
        """
        changed = [
            str(entry.path)
            for entry in record.entries
            if _sha256(entry.path) not in ("", entry.sha256, entry.before)
        ]
        if changed:
            raise Refused(
                f"{', '.join(changed)}: changed since pyvattn wrote it. Look at it, move it away, "
                "and repeat."
            )

    def _begin(self, files: Mapping[Path, bytes], about: dict[str, str]) -> None:
        """Write down what will be done, and set aside what is there now."""
        self.sweep()
        made: list[Path] = []
        for folder in (self._home, *(path.parent for path in files)):
            made += [path for path in _missing_directories(folder) if path not in made]
        entries = tuple(
            Entry(path, hashlib.sha256(data).hexdigest(), _sha256(path), self._home / f"before-{n}")
            for n, (path, data) in enumerate(files.items())
        )
        try:
            self._home.mkdir(parents=True, exist_ok=True)
            self._write_record(Record(INSTALLING, entries, tuple(made), about))
        except BaseException:
            _remove(self._path)
            _remove_empty([path for path in made if path in (self._home, *self._home.parents)])
            raise
        for entry in entries:
            if entry.before:
                _write(entry.backup, entry.path.read_bytes(), entry.path.stat())

    def _undo(self) -> None:
        record = self.read()
        if record is None:
            return
        self.require_ours(record)
        for entry in reversed(record.entries):
            _partial(entry.path).unlink(missing_ok=True)
            if not entry.before:
                _remove(entry.path)
            elif entry.backup.exists():
                _write(entry.path, entry.backup.read_bytes(), entry.backup.stat())
        folders = list(record.directories)
        modules = self._machine.modules
        if (modules / "modules.dep").exists():
            self._settle(record.about)
        else:  # The kernel was removed, and its folders stayed because of ours.
            folders += [modules, modules / "updates"]
        for entry in record.entries:
            _remove(entry.backup)
        _remove_empty(folders)
        _remove(self._path)
        _remove_empty(folders)

    def _settle(self, about: Mapping[str, str]) -> None:
        if "depmod" in about:
            run_depmod(self._machine)

    def _mark(self, state: str) -> None:
        record = self.read()
        if record is None:
            raise Failed(f"{self._path}: vanished while it was needed")
        self._write_record(replace(record, state=state))

    def sweep(self) -> tuple[str, ...]:
        """Where there is no record: remove what a run left that died before it wrote one."""
        _remove(self._path)
        folder = self._machine.path(_FOLDER)
        _remove_empty([folder.parent, folder, self._home])
        return ()

    def _stay_inside(self, path: Path) -> None:
        root = self._machine.root
        if not path.parent.resolve().is_relative_to(root):
            raise BadInput(f"{path} lies outside {root}, behind a link: not written to.")

    def _write_record(self, record: Record) -> None:
        value = {
            "version": _VERSION,
            "state": record.state,
            "files": [
                [self._name(e.path), e.sha256, e.before, e.backup.name] for e in record.entries
            ],
            "directories": [self._name(path) for path in record.directories],
            "about": record.about,
        }
        _write(self._path, f"{json.dumps(value, indent=1)}\n".encode())

    def _parse(self, value: dict[str, Any]) -> Record:
        if value["version"] != _VERSION:
            raise ValueError(f"it is of version {value['version']}, this pyvattn knows {_VERSION}")
        entries = tuple(
            Entry(self._machine.root / path, sha256, before, self._home / backup)
            for path, sha256, before, backup in value["files"]
        )
        directories = tuple(self._machine.root / name for name in value["directories"])
        return Record(value["state"], entries, directories, dict(value["about"]))

    def _name(self, path: Path) -> str:
        # Relative to the root, so that an image may be mounted elsewhere next time.
        return str(path.relative_to(self._machine.root))


def removed_kernels(machine: Machine) -> list[str]:
    """Return the kernels that something is installed for and that are not there any more."""
    names = sorted(path.parent.name for path in machine.path(_FOLDER).glob("*/manifest.json"))
    modules = machine.path("lib/modules")
    return [n for n in names if n != DKMS_JOURNAL and not (modules / n / "modules.dep").exists()]


@contextmanager
def locked(machine: Machine) -> Iterator[None]:
    """Keep a second install or uninstall for the same root out.

    Raises:
        Refused: there is one at work.
    """
    descriptor = os.open(machine.root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise Refused("another install or uninstall is at work; wait for it.") from error
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    """Return the checksum of a file, or an empty string where there is none."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        return ""


def _partial(path: Path) -> Path:
    """Return the name under which ``path`` is written before it is renamed."""
    return path.with_name(path.name + _PARTIAL_SUFFIX)


def _write(path: Path, data: bytes, like: os.stat_result | None = None) -> None:
    """Replace ``path`` as one step that is on disk when this returns.

    Mode, owner and modification time are those of ``like``.
    """
    temporary = _partial(path)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(descriptor, 0o644 if like is None else like.st_mode & 0o7777)
            if like is not None:
                if os.geteuid() == 0:
                    os.fchown(descriptor, like.st_uid, like.st_gid)
                os.utime(descriptor, ns=(like.st_mtime_ns, like.st_mtime_ns))
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def _remove(path: Path) -> None:
    """Remove a file, and what an interrupted run has left of writing it."""
    _partial(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)
    if path.parent.is_dir():
        _sync(path.parent)


def _sync(folder: Path) -> None:
    """Bring the names in a directory to disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _missing_directories(path: Path) -> list[Path]:
    """Return the directories that must be made for ``path`` to be one, outermost first."""
    return [folder for folder in (*reversed(path.parents), path) if not folder.exists()]


def _remove_empty(folders: Iterable[Path]) -> None:
    """Remove those that are empty, inner ones first; keep the others."""
    for folder in sorted(folders, key=lambda path: len(path.parts), reverse=True):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
