# SPDX-License-Identifier: Apache-2.0
"""What the machine shows of NVIDIA's driver: device nodes and text files, nothing opened."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pyvattn.arguments import check_path
from pyvattn.nvidia import read_kernel_driver


@dataclass(frozen=True)
class Machine:
    """The facts that detectors decide from.

    ``release`` and ``open_modules`` describe the loaded kernel driver: its
    version, and whether it is the open flavour. ``gpus`` are device nodes.
    """

    release: str | None = None
    open_modules: bool = False
    gpus: tuple[str, ...] = ()
    control_node: bool = False
    uvm_node: bool = False
    wsl: bool = False

    @property
    def no_gpu_reason(self) -> str | None:
        """Why CUDA cannot work here, or None if nothing speaks against it."""
        if self.wsl:
            return None
        if self.release is None:
            return "no NVIDIA kernel driver is loaded (/proc/driver/nvidia/version is missing)"
        if not self.gpus or not self.control_node:
            return (
                f"NVIDIA driver {self.release} is loaded, but /dev/nvidia0 or /dev/nvidiactl is "
                "missing: in a container, pass the GPU through"
            )
        return None


def read_machine(root: Path = Path("/")) -> Machine:
    """Look at the machine whose files are under ``root``."""
    root = check_path("root", root)
    driver = read_kernel_driver(root)
    nodes = sorted(
        f"/dev/{path.name}"
        for path in (root / "dev").glob("nvidia*")
        if re.fullmatch(r"nvidia\d+", path.name)
    )
    return Machine(
        release=driver.release,
        open_modules=driver.open_modules,
        gpus=tuple(nodes),
        control_node=(root / "dev/nvidiactl").exists(),
        uvm_node=(root / "dev/nvidia-uvm").exists(),
        wsl=(root / "dev/dxg").exists(),
    )
