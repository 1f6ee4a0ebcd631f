# SPDX-License-Identifier: Apache-2.0
"""One machine, or one root directory that stands for it: where things lie and what runs.

Everything is read from files below the root, so that a scratch directory with a
few made-up files is a machine too, and a mounted image can be prepared.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

#: A module parameter that only the patched nvidia-uvm has; tells it from a stock one.
PATCH_PARAMETER = "uvm_vattn_enable"

_KERNEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~-]*")
_RELEASE = re.compile(r"\s(\d+\.\d+(?:\.\d+)*)\s")
# Holds /dev/nvidiactl on most servers, has no use of nvidia-uvm, and outlives its reload.
_DAEMON = "nvidia-persiste"


class InstallerError(Exception):
    """Base of what the installer raises; ``exit_code`` is what its process ends with."""

    exit_code = 4


class Refused(InstallerError):
    """A check failed and nothing was touched; the message says why and what to do."""

    exit_code = 1


class BadInput(InstallerError):
    """A file, kernel or option that is not what it should be; nothing was touched."""

    exit_code = 2


class Unavailable(InstallerError):
    """Something that is needed is not installed here, such as the NVIDIA driver or kmod."""

    exit_code = 3


class Failed(InstallerError):
    """A step failed; the message says what state that left."""


@dataclass(frozen=True)
class RunningDriver:
    """The nvidia.ko that is loaded."""

    release: str
    is_open: bool

    def __str__(self) -> str:
        flavour = "open" if self.is_open else "proprietary"
        return f"{self.release}, {flavour} kernel modules"


@dataclass(frozen=True)
class LoadedUvm:
    """The nvidia-uvm that is loaded; ``references`` is None where it cannot be known."""

    release: str
    is_patched: bool
    references: int | None


@dataclass(frozen=True)
class GpuUsers:
    """The processes that hold ``/dev/nvidia*`` open, and how many could not be looked into.

    ``blocking`` are those that must end before the module is replaced.
    """

    users: tuple[str, ...]
    blocking: tuple[str, ...]
    hidden: int

    def __str__(self) -> str:
        text = "; ".join(self.users) or "no process"
        if self.hidden:
            hint = "" if os.geteuid() == 0 else "; root can"
            text += f" (processes that could not be looked into: {self.hidden}{hint})"
        return text


class Machine:
    """Look-ups below a root directory for one kernel release.

    Raises:
        BadInput: no such root, or the kernel cannot be told and is not named.
    """

    def __init__(self, root: Path | str = "/", kernel: str | None = None) -> None:
        self.root = Path(root).resolve()
        if not self.root.is_dir():
            raise BadInput(f"--root {root}: no such directory")
        self.running_kernel = self.text("proc/sys/kernel/osrelease").strip()
        self.kernel = kernel or self.running_kernel or self._only_kernel()
        if not _KERNEL_NAME.fullmatch(self.kernel):
            raise BadInput(f"{self.kernel!r} is not a kernel release such as 6.1.0-18-amd64")

    @property
    def is_live(self) -> bool:
        """Whether the root is this machine's own, rather than an image or a staging directory."""
        return self.root == Path("/")

    @property
    def is_running_kernel(self) -> bool:
        """Whether what runs here runs on the kernel that is installed for."""
        return self.running_kernel in ("", self.kernel)

    def path(self, name: str) -> Path:
        """Return where ``/name`` lies; an absolute link on the way stays inside the root."""
        path = self.root
        for part in Path(name.lstrip("/")).parts:
            path = path / part
            for _ in range(16):
                if self.is_live or not path.is_symlink():
                    break
                target = os.readlink(path)
                absolute = target.startswith("/")
                path = self.root / target.lstrip("/") if absolute else path.parent / target
        return path

    def data(self, name: str) -> bytes:
        """Return the bytes of a small file, or none where it cannot be read."""
        try:
            return self.path(name).read_bytes()
        except OSError:
            return b""

    def text(self, name: str) -> str:
        """Return the contents of a small file, or an empty string where it cannot be read."""
        return self.data(name).decode(errors="replace")

    @property
    def modules(self) -> Path:
        """``/lib/modules/KERNEL`` of this root."""
        return self.path(f"lib/modules/{self.kernel}")

    def kernels(self) -> list[str]:
        """Return the kernel releases that have modules here."""
        folder = self.path("lib/modules")
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []

    def running_driver(self) -> RunningDriver | None:
        """Return the NVIDIA driver that is loaded, or None."""
        lines = self.text("proc/driver/nvidia/version").splitlines()
        if not lines:
            return None
        found = _RELEASE.search(f"{lines[0]} ")
        release = found.group(1) if found else "unknown"
        return RunningDriver(release, "Open Kernel Module" in lines[0])

    def loaded_uvm(self) -> LoadedUvm | None:
        """Return the nvidia-uvm that is loaded, or None."""
        folder = "sys/module/nvidia_uvm"
        if not self.path(folder).is_dir():
            return None
        references = self.text(f"{folder}/refcnt").strip()
        return LoadedUvm(
            release=self.text(f"{folder}/version").strip() or "unknown",
            is_patched=self.path(f"{folder}/parameters/{PATCH_PARAMETER}").exists(),
            references=int(references) if references.isdigit() else None,
        )

    def is_container(self) -> bool:
        """Whether this looks like the inside of a container, whose kernel is the host's."""
        return any(self.path(name).exists() for name in (".dockerenv", "run/.containerenv"))

    def dkms_knows(self, release: str) -> bool:
        """Whether DKMS builds this release of NVIDIA's driver here."""
        return any(self.path("var/lib/dkms").glob(f"nvidia*/{release}"))

    def gpu_users(self) -> GpuUsers:
        """Return who uses the GPU. Processes that end meanwhile are left out."""
        users, blocking, hidden = [], [], 0
        proc = self.path("proc")
        numbers = [int(p.name) for p in proc.iterdir() if p.name.isdigit()] if proc.is_dir() else []
        for pid in sorted(numbers):
            try:
                devices = _open_devices(proc / str(pid) / "fd")
            except PermissionError:
                hidden += 1
                continue
            except OSError:
                continue
            if not devices:
                continue
            name = self.text(f"proc/{pid}/comm").strip() or "?"
            users.append(f"{name} (pid {pid}: {', '.join(devices)})")
            if name != _DAEMON or any(d.startswith("/dev/nvidia-uvm") for d in devices):
                blocking.append(users[-1])
        return GpuUsers(tuple(users), tuple(blocking), hidden)

    def require_idle(self) -> None:
        """Check that no process uses the GPU, as far as can be seen.

        Raises:
            Refused: a process does.
        """
        if users := self.gpu_users().blocking:
            raise Refused(
                f"the GPU is in use by {'; '.join(users)}. End these first, or let the change take "
                "effect at the next boot (--allow-in-use, make ALLOW_IN_USE=1)."
            )
        if (loaded := self.loaded_uvm()) and loaded.references:
            raise Refused(
                f"nvidia_uvm is in use {loaded.references} times by processes that cannot be seen "
                "from here (not root, or in another container). Run this as root on the host, or "
                "let the change take effect at the next boot (--allow-in-use, make ALLOW_IN_USE=1)."
            )

    def denied(self) -> str:
        """Say which places may not be written to; an empty string where all may."""
        places = [self.modules, self.path("etc"), self.path("var/lib")]
        denied = [str(path) for path in places if path.exists() and not os.access(path, os.W_OK)]
        return f"{', '.join(denied)}: no permission to write; run this as root." if denied else ""

    def _only_kernel(self) -> str:
        kernels = self.kernels()
        if len(kernels) == 1:
            return kernels[0]
        held = ", ".join(kernels) or "none"
        raise BadInput(f"{self.root}: which kernel? Name it with --kernel (it holds {held}).")


def _open_devices(folder: Path) -> list[str]:
    found = set()
    for descriptor in folder.iterdir():
        try:
            target = os.readlink(descriptor)
        except FileNotFoundError:
            continue
        if target.startswith("/dev/nvidia"):
            found.add(target)
    return sorted(found)
