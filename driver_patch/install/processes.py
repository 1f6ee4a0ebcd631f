"""Who has the GPU open: every process with a descriptor on ``/dev/nvidia*``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from driver_patch.install.machine import Machine

# Holds /dev/nvidiactl on most servers, has no use of nvidia-uvm, and outlives its reload.
_DAEMONS = ("nvidia-persiste",)


@dataclass(frozen=True)
class GpuUser:
    """A process and the device files that it has open."""

    pid: int
    name: str
    devices: tuple[str, ...]

    @property
    def holds_uvm(self) -> bool:
        """Whether it has nvidia-uvm itself open, as every CUDA process has."""
        return any(device.startswith("/dev/nvidia-uvm") for device in self.devices)

    @property
    def is_daemon(self) -> bool:
        """Whether it is nvidia-persistenced, which does not stand in the way."""
        return self.name in _DAEMONS and not self.holds_uvm

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid}: {', '.join(self.devices)})"


@dataclass(frozen=True)
class GpuUsers:
    """The processes found, and how many could not be looked into for lack of permission."""

    users: tuple[GpuUser, ...]
    hidden: int

    @property
    def blocking(self) -> tuple[GpuUser, ...]:
        """Those that must end before the module is replaced."""
        return tuple(user for user in self.users if not user.is_daemon)


def gpu_users(machine: Machine) -> GpuUsers:
    """Return who uses the GPU. Processes that end meanwhile are left out."""
    users, hidden = [], 0
    proc = machine.path("proc")
    folders = [p for p in proc.iterdir() if p.name.isdigit()] if proc.is_dir() else []
    for folder in sorted(folders, key=lambda path: int(path.name)):
        try:
            devices = _open_devices(folder / "fd")
        except PermissionError:
            hidden += 1
            continue
        except OSError:
            continue
        if devices:
            name = machine.text(f"proc/{folder.name}/comm").strip() or "?"
            users.append(GpuUser(int(folder.name), name, devices))
    return GpuUsers(tuple(users), hidden)


def _open_devices(folder: Path) -> tuple[str, ...]:
    found = set()
    for descriptor in folder.iterdir():
        try:
            target = os.readlink(descriptor)
        except PermissionError:
            raise
        except OSError:
            continue
        if target.startswith("/dev/nvidia"):
            found.add(target)
    return tuple(sorted(found))
