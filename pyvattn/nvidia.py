# SPDX-License-Identifier: Apache-2.0
"""What NVIDIA's kernel driver says of itself and of its GPUs, under /proc/driver/nvidia.

The core has a reader of its own (``uvm_ext/drivers/nvidia/platform.cpp``), and
the installer one that needs no package: neither can use this one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_RELEASE = re.compile(r"\b(\d{3}\.\d+(?:\.\d+)?)\b")
_MODEL = re.compile(r"^Model:\s*(.+?)\s*$", re.MULTILINE)


@dataclass(frozen=True)
class KernelDriver:
    """The loaded driver: its release, None where there is none, and whether its modules are open.

    ``models`` are the names of its GPUs in the order of their bus addresses.
    """

    release: str | None = None
    open_modules: bool = False
    models: tuple[str, ...] = ()


def read_kernel_driver(root: Path = Path("/")) -> KernelDriver:
    """Read the text files under ``root``; what cannot be read is not there."""
    folder = root / "proc/driver/nvidia"
    version = _text(folder / "version")
    release = _RELEASE.search(version.splitlines()[0]) if version else None
    files = sorted(folder.glob("gpus/*/information"))
    found = [_MODEL.search(_text(path)) for path in files]
    return KernelDriver(
        release=release.group(1) if release else None,
        open_modules="Open Kernel Module" in version,
        models=tuple(model.group(1) for model in found if model),
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
