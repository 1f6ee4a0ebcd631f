# SPDX-License-Identifier: Apache-2.0
"""Describes the machine and the versions: for result files, and for what is measured on one."""

from __future__ import annotations

import os
import platform
import re
import sys
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pyvattn.nvidia import KernelDriver, read_kernel_driver

_PACKAGES = ("pyvattn", "numpy", "torch", "transformers", "flash-attn", "tokenspeed-fa3")


@dataclass(frozen=True)
class MadeOn:
    """What a calibration depends on; None where it does not say, or the machine has none."""

    cpu: str | None = None
    gpu: str | None = None
    release: str | None = None


def identify(root: Path = Path("/")) -> MadeOn:
    """Return this machine, from text files alone; no ``gpu`` where there are several models."""
    driver = read_kernel_driver(root)
    models = set(driver.models)
    gpu = models.pop() if len(models) == 1 else None
    return MadeOn(cpu=cpu_model(), gpu=gpu, release=driver.release)


def describe_machine(root: Path = Path("/")) -> dict[str, object]:
    """Return CPU, cores, memory, GPUs, kernel, Python and package versions.

    What the kernel driver says of the GPUs is read under ``root``.
    """
    return {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        **_describe_gpus(read_kernel_driver(root)),
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


def _describe_gpus(driver: KernelDriver) -> dict[str, object]:
    """Return the GPUs and their driver; nothing where there is none."""
    if not driver.models:
        return {}
    return {"gpus": list(driver.models), "nvidia_driver": driver.release}


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
