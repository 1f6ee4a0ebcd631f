"""Describes the machine and the versions, for every result file."""

from __future__ import annotations

import os
import platform
import re
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("pyvattn", "numpy", "torch", "transformers", "flash-attn", "tokenspeed-fa3")
_NVIDIA = Path("/proc/driver/nvidia")


def describe_machine() -> dict[str, object]:
    """Return CPU, cores, memory, GPUs, kernel, Python and package versions."""
    return {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        **_describe_gpus(_NVIDIA),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
    }


def describe_run() -> dict[str, object]:
    """Return the command and the time."""
    name = Path(sys.argv[0]).name
    if name == "__main__.py":
        name = "pyvattn"
    return {
        "command": " ".join([name, *sys.argv[1:]]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def cpu_model() -> str:
    """Return the name that the processor gives itself."""
    model = _find(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo"))
    return model or platform.processor() or platform.machine()


def _describe_gpus(folder: Path) -> dict[str, object]:
    """Return what the kernel module says of its GPUs and itself; nothing where there is none."""
    files = sorted(folder.glob("gpus/*/information"))
    models = [_find(r"^Model:\s*(.+?)\s*$", path) for path in files]
    release = _find(r"\b(\d{3}\.\d+(?:\.\d+)?)\b", folder / "version")
    return {"gpus": models, "nvidia_driver": release} if models else {}


def _find(pattern: str, path: Path) -> str | None:
    try:
        found = re.search(pattern, path.read_text(), re.M)
    except OSError:
        return None
    return found.group(1) if found else None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
