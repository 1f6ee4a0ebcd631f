"""One machine, or one root directory that stands for it: where things lie and what runs.

Everything is read from files below the root, so that a scratch directory with a
few made-up files is a machine too, and a mounted image can be prepared.
"""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

from driver_patch.install.modules import PATCH_PARAMETER
from pyvattn.errors import ConfigError

_KERNEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~-]*")
_RELEASE = re.compile(r"\s(\d+\.\d+(?:\.\d+)*)\s")


@dataclass(frozen=True)
class RunningDriver:
    """The nvidia.ko that is loaded."""

    release: str
    is_open: bool

    @property
    def flavour(self) -> str:
        """``open`` or ``proprietary``, as NVIDIA calls them."""
        return "open" if self.is_open else "proprietary"


@dataclass(frozen=True)
class LoadedUvm:
    """The nvidia-uvm that is loaded; ``references`` is None where it cannot be known."""

    release: str
    is_patched: bool
    references: int | None


class Machine:
    """Look-ups below a root directory for one kernel release.

    Raises:
        ConfigError: no such root, or the kernel cannot be told and is not named.
    """

    def __init__(self, root: Path | str = "/", kernel: str | None = None) -> None:
        self.root = Path(root).resolve()
        if not self.root.is_dir():
            raise ConfigError(f"--root {root}: no such directory")
        self.kernel = kernel or self._default_kernel()
        if not _KERNEL_NAME.fullmatch(self.kernel):
            raise ConfigError(f"{self.kernel!r} is not a kernel release such as 6.1.0-18-amd64")

    @property
    def is_live(self) -> bool:
        """Whether the root is this machine's own, rather than an image or a staging directory."""
        return self.root == Path("/")

    @property
    def is_running_kernel(self) -> bool:
        """Whether the kernel that is installed for is the one that runs."""
        return not self.is_live or self.kernel == platform.release()

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

    def text(self, name: str) -> str:
        """Return the contents of a small file, or an empty string where it cannot be read."""
        try:
            return self.path(name).read_text(errors="replace")
        except OSError:
            return ""

    def data(self, name: str) -> bytes:
        """Return the bytes of a small file, or none where it cannot be read."""
        try:
            return self.path(name).read_bytes()
        except OSError:
            return b""

    @property
    def modules(self) -> Path:
        """``/lib/modules/KERNEL`` of this root."""
        return self.path(f"lib/modules/{self.kernel}")

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

    def _default_kernel(self) -> str:
        if self.is_live:
            return platform.release()
        folder = self.path("lib/modules")
        kernels = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        if len(kernels) == 1:
            return kernels[0]
        held = ", ".join(kernels) or "none"
        raise ConfigError(f"{self.root}: which kernel? Name it with --kernel (it holds {held}).")
