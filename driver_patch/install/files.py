"""Files that are replaced as one step, and put back with all that they had."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

#: Suffix of a file that is being written; one that is left over is of an interrupted run.
PARTIAL_SUFFIX = ".pyvattn-new"


@dataclass(frozen=True)
class FileState:
    """What a file was: its bytes by SHA-256, and what else a restore must give back."""

    sha256: str
    mode: int
    mtime_ns: int
    uid: int
    gid: int

    def as_dict(self) -> dict[str, Any]:
        """Return the state as JSON values."""
        return asdict(self)


def file_state(path: Path) -> FileState | None:
    """Return the state of a file, or None where there is none."""
    try:
        stat = path.stat()
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    return FileState(
        hashlib.sha256(data).hexdigest(),
        stat.st_mode & 0o7777,
        stat.st_mtime_ns,
        stat.st_uid,
        stat.st_gid,
    )


def partial(path: Path) -> Path:
    """Return the name under which ``path`` is written before it is renamed."""
    return path.with_name(path.name + PARTIAL_SUFFIX)


def write_file(path: Path, data: bytes, mode: int = 0o644, like: FileState | None = None) -> None:
    """Replace ``path`` as one step that is on disk when this returns.

    With ``like``, mode, owner and modification time are those of that state.
    """
    temporary = partial(path)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(descriptor, mode if like is None else like.mode)
            if like is not None:
                if os.geteuid() == 0:
                    os.fchown(descriptor, like.uid, like.gid)
                os.utime(descriptor, ns=(like.mtime_ns, like.mtime_ns))
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def remove_file(path: Path) -> None:
    """Remove a file, and what an interrupted run has left of writing it."""
    partial(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)
    if path.parent.is_dir():
        sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Bring the names in a directory to disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def missing_directories(path: Path) -> list[Path]:
    """Return the directories that must be made for ``path`` to be one, outermost first."""
    missing = []
    while not path.exists():
        missing.append(path)
        path = path.parent
    return missing[::-1]


def remove_empty(directories: Iterable[Path]) -> None:
    """Remove those of ``directories`` that are empty, inner ones first; keep the others."""
    for directory in sorted(directories, key=lambda path: len(path.parts), reverse=True):
        try:
            directory.rmdir()
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST):
                raise
