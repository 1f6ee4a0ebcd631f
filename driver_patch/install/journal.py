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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from driver_patch.install.files import (
    FileState,
    file_state,
    missing_directories,
    partial,
    remove_empty,
    remove_file,
    write_file,
)
from driver_patch.install.machine import Machine
from pyvattn.errors import InstallError, InstallRefused

_VERSION = 1
_FOLDER = "var/lib/pyvattn/driver"

#: The name of the journal of what is changed for DKMS; the others are named after kernels.
DKMS_JOURNAL = "dkms"

INSTALLING = "installing"
INSTALLED = "installed"
UNINSTALLING = "uninstalling"


@dataclass(frozen=True)
class Entry:
    """One file of ours: where, its checksum, and what was there before."""

    path: Path
    sha256: str
    before: FileState | None
    backup: Path


@dataclass(frozen=True)
class Record:
    """What the journal says. ``about`` is for people: releases, the stock module, the signature."""

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
            InstallError: there is one, and it cannot be read.
        """
        try:
            return self._parse(json.loads(self._path.read_text()))
        except FileNotFoundError:
            return None
        except PermissionError as error:
            raise InstallError(f"{self._path}: cannot be read: run this as root") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InstallError(
                f"{self._path}: cannot be understood ({error}). What is installed lies in "
                f"{self._machine.modules / 'updates/pyvattn'} and in /etc/depmod.d/pyvattn-*.conf; "
                "remove these by hand, then this record, and run depmod."
            ) from error

    def begin(self, files: Mapping[Path, bytes], about: dict[str, str]) -> None:
        """Write down what :meth:`put` will do, and set aside what is there now."""
        made: list[Path] = []
        for folder in (self._home, *(path.parent for path in files)):
            made += [path for path in missing_directories(folder) if path not in made]
        entries = tuple(
            Entry(
                path,
                hashlib.sha256(data).hexdigest(),
                file_state(path),
                self._home / f"before-{number}",
            )
            for number, (path, data) in enumerate(files.items())
        )
        try:
            self._home.mkdir(parents=True, exist_ok=True)
            self._write(Record(INSTALLING, entries, tuple(made), about))
        except BaseException:
            remove_file(self._path)
            remove_empty([path for path in made if path in (self._home, *self._home.parents)])
            raise
        for entry in entries:
            if entry.before is not None:
                write_file(entry.backup, entry.path.read_bytes(), like=entry.before)

    def put(self, files: Mapping[Path, bytes]) -> None:
        """Write the files that :meth:`begin` wrote down."""
        for path, data in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_file(path, data)

    def mark(self, state: str) -> None:
        """Change the state of the record."""
        record = self.read()
        if record is None:
            raise InstallError(f"{self._path}: vanished while it was needed")
        self._write(Record(state, record.entries, record.directories, record.about))

    def is_intact(self, record: Record) -> bool:
        """Whether every file is as we wrote it."""
        states = [(entry, file_state(entry.path)) for entry in record.entries]
        return all(now is not None and now.sha256 == entry.sha256 for entry, now in states)

    def foreign_changes(self, record: Record) -> list[Path]:
        """Return the files that are neither ours nor as before: somebody changed them since."""
        return [
            entry.path
            for entry in record.entries
            if (now := file_state(entry.path)) is not None
            and now.sha256 not in (entry.sha256, entry.before and entry.before.sha256)
        ]

    def put_back(self, record: Record) -> None:
        """Give every file its former state. May be repeated until :meth:`forget`.

        Raises:
            InstallRefused: somebody changed a file since; nothing was touched.
        """
        if changed := self.foreign_changes(record):
            names = ", ".join(map(str, changed))
            raise InstallRefused(
                f"{names}: changed since pyvattn wrote it. Look at it, move it away, and repeat.",
                reasons=tuple(map(str, changed)),
            )
        for entry in reversed(record.entries):
            partial(entry.path).unlink(missing_ok=True)
            if entry.before is None:
                remove_file(entry.path)
            elif file_state(entry.path) != entry.before:
                write_file(entry.path, entry.backup.read_bytes(), like=entry.before)

    def forget(self, record: Record) -> None:
        """Remove what was set aside, the record, and the directories that were made."""
        for entry in record.entries:
            remove_file(entry.backup)
        remove_empty(record.directories)
        remove_file(self._path)
        remove_empty(record.directories)

    def sweep(self) -> None:
        """Where there is no record: remove what a run left that died before it wrote one."""
        remove_file(self._path)
        folder = self._machine.path(_FOLDER)
        remove_empty([folder.parent, folder, self._home])

    def _write(self, record: Record) -> None:
        text = json.dumps(
            {
                "version": _VERSION,
                "state": record.state,
                "files": [self._entry_as_json(entry) for entry in record.entries],
                "directories": [self._name(path) for path in record.directories],
                "about": record.about,
            },
            indent=1,
        )
        write_file(self._path, f"{text}\n".encode())

    def _entry_as_json(self, entry: Entry) -> dict[str, Any]:
        return {
            "path": self._name(entry.path),
            "sha256": entry.sha256,
            "before": entry.before and entry.before.as_dict(),
            "backup": entry.backup.name,
        }

    def _parse(self, value: dict[str, Any]) -> Record:
        if value["version"] != _VERSION:
            raise ValueError(f"it is of version {value['version']}, this pyvattn knows {_VERSION}")
        entries = tuple(
            Entry(
                path=self._machine.root / row["path"],
                sha256=row["sha256"],
                before=FileState(**row["before"]) if row["before"] else None,
                backup=self._home / row["backup"],
            )
            for row in value["files"]
        )
        directories = tuple(self._machine.root / name for name in value["directories"])
        return Record(value["state"], entries, directories, dict(value["about"]))

    def _name(self, path: Path) -> str:
        # Relative to the root, so that an image may be mounted elsewhere next time.
        return str(path.relative_to(self._machine.root))


@contextmanager
def locked(machine: Machine) -> Iterator[None]:
    """Keep a second install or uninstall for the same root out.

    Raises:
        InstallRefused: there is one at work.
    """
    descriptor = os.open(machine.root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InstallRefused("another install or uninstall is at work; wait for it") from error
        yield
    finally:
        os.close(descriptor)
