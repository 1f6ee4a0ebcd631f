"""Reloading nvidia-uvm alone, which is done only when it was asked for."""

from __future__ import annotations

from driver_patch.install.machine import Machine
from driver_patch.install.tools import find_tool, run_tool
from pyvattn.errors import InstallError


def reload_uvm(machine: Machine, patched: bool) -> None:
    """Unload nvidia-uvm, load it as modprobe finds it, and check which one came.

    nvidia.ko and what else depends on it stay loaded.

    Raises:
        InstallError: a step failed, or the other module was loaded.
    """
    if machine.loaded_uvm() is not None:
        run_tool([find_tool("rmmod") or "rmmod", "nvidia_uvm"])
    run_tool([find_tool("modprobe") or "modprobe", "nvidia-uvm"])
    loaded = machine.loaded_uvm()
    if loaded is None:
        raise InstallError("modprobe succeeded, but nvidia_uvm is not loaded.")
    if loaded.is_patched != patched:
        names = {True: "the patched", False: "NVIDIA's"}
        raise InstallError(
            f"modprobe loaded {names[loaded.is_patched]} nvidia-uvm instead of {names[patched]}: "
            "look at /etc/modprobe.d."
        )
