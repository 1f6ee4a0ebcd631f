"""The checks before an install. Each returns what is wrong and the remedy, or nothing."""

from __future__ import annotations

import os

from driver_patch.install.machine import Machine
from driver_patch.install.modules import PATCH_PARAMETER, ModuleFile
from driver_patch.install.processes import GpuUsers
from driver_patch.install.stock import StockModules

_SHOWN = 3


def check_module(machine: Machine, module: ModuleFile) -> list[str]:
    """Check the built module by itself: is it ours, and for this kernel?"""
    problems = []
    if not module.is_patched:
        problems.append(
            f"{module.path} is not the patched nvidia-uvm (it has no parameter {PATCH_PARAMETER}): "
            "build it with `make driver`."
        )
    if module.kernel != machine.kernel:
        problems.append(
            f"{module.path} was built for kernel {module.kernel or '(unknown)'}, not for "
            f"{machine.kernel}: build it with `make driver KERNEL={machine.kernel}`."
        )
    return problems


def check_stock(module: ModuleFile, stock: StockModules) -> list[str]:
    """Check the built module against the installed driver: flavour, release, would it load?"""
    if not stock.rm.is_open:
        return [
            f"{stock.rm.path} is the proprietary flavour of the driver (licence "
            f"{stock.rm.elf.first('license')!r}); the patch is for the open kernel modules. "
            "Install these first (such as nvidia-open or nvidia-driver-<branch>-open)."
        ]
    if stock.uvm.is_patched:
        return [
            f"{stock.uvm.path} holds the patch already (DKMS built it so): nothing is to be "
            "installed beside it."
        ]
    problems = []
    if module.release != stock.release:
        problems.append(
            f"{module.path} is of release {module.release}, the installed driver of "
            f"{stock.release}: build it from the source of {stock.release}."
        )
    if module.elf.machine != stock.rm.elf.machine:
        problems.append(
            f"{module.path} is for {module.elf.machine}, the driver for {stock.rm.elf.machine}."
        )
    if stock.rm.kernel == module.kernel and stock.rm.vermagic != module.vermagic:
        problems.append(
            f"{module.path} was built with another kernel configuration: its vermagic is "
            f"{module.vermagic!r}, the driver's {stock.rm.vermagic!r}. Build it against this "
            "kernel's own headers."
        )
    return problems or _check_versions(module, stock)


def _check_versions(module: ModuleFile, stock: StockModules) -> list[str]:
    """The kernel compares the checksum of every imported symbol when it loads a module."""
    if stock.uvm.kernel != module.kernel or not stock.uvm.elf.versions:
        return []
    if not module.elf.versions:
        return [
            f"{module.path} carries no symbol versions, and this kernel asks for them: build it "
            "against this kernel's own headers."
        ]
    differing = sorted(
        name
        for name, checksum in module.elf.versions.items()
        if stock.uvm.elf.versions.get(name, checksum) != checksum
    )
    if not differing:
        return []
    more = f" and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
    return [
        f"{module.path} would not load: the versions of {', '.join(differing[:_SHOWN])}{more} are "
        "not those of the installed driver and kernel. Build it from exactly their source."
    ]


def check_running(machine: Machine, module: ModuleFile) -> list[str]:
    """Check the built module against the driver that is loaded, if one is."""
    running = machine.running_driver()
    if running is None:
        return []
    if not running.is_open:
        return [
            f"the running driver ({running.release}) is the proprietary flavour; the patch is for "
            "the open kernel modules. Install these and reboot first."
        ]
    if running.release != module.release:
        return [
            f"the running driver is of release {running.release}, {module.path} of "
            f"{module.release}: if the driver was just upgraded, reboot first; otherwise build "
            f"from the source of {running.release}."
        ]
    return []


def check_users(machine: Machine, users: GpuUsers) -> list[str]:
    """Check that nobody uses the GPU, as far as can be seen."""
    if users.blocking:
        who = "; ".join(map(str, users.blocking))
        return [
            f"in use by {who}. End these first, or allow it (--allow-in-use, make "
            "ALLOW_IN_USE=1): then the files are installed and take effect at the next boot."
        ]
    loaded = machine.loaded_uvm()
    if loaded is not None and loaded.references:
        return [
            f"nvidia_uvm is in use {loaded.references} times by processes that cannot be seen from "
            "here (not root, or in another container). Run this as root on the host, or "
            "allow it (--allow-in-use, make ALLOW_IN_USE=1)."
        ]
    return []


def check_root(machine: Machine) -> list[str]:
    """Check that the places may be written to."""
    places = [machine.modules, machine.path("etc"), machine.path("var/lib")]
    denied = [str(path) for path in places if path.exists() and not os.access(path, os.W_OK)]
    return [f"{', '.join(denied)}: no permission to write; run this as root."] if denied else []
