"""NVIDIA's own modules of one kernel: the pair of nvidia.ko and nvidia-uvm.ko that is installed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from driver_patch.install.machine import Machine
from driver_patch.install.modules import (
    ModuleFile,
    find_modules,
    module_stem,
    preferred_module,
    read_module,
)
from pyvattn.errors import ConfigError, DriverUnavailable, InstallRefused

#: Where our module goes, below /lib/modules/KERNEL.
OUR_FOLDER = "updates/pyvattn"

_RM_SUFFIX = "-uvm"


@dataclass(frozen=True)
class StockModules:
    """The modules that NVIDIA's packages installed for a kernel; ``rm`` is nvidia.ko."""

    uvm: ModuleFile
    rm: ModuleFile

    @property
    def release(self) -> str:
        """Their release, such as 580.159.04."""
        return self.rm.release or self.uvm.release


def find_stock(machine: Machine, release: str = "") -> StockModules:
    """Return NVIDIA's modules, under whatever names the distribution gave them.

    Debian installs several drivers side by side (nvidia-current-uvm,
    nvidia-current-open-uvm, …); ``release`` then picks the one that fits.

    Raises:
        DriverUnavailable: none is installed for this kernel.
        InstallRefused: several are, and nothing tells which is used.
    """
    pairs = [_pair(machine, stem) for stem in _stems(machine)]
    if not pairs:
        raise DriverUnavailable(_absent(machine))
    if len(pairs) > 1:
        fitting = [pair for pair in pairs if pair.release == release and pair.rm.is_open]
        pairs = fitting if len(fitting) == 1 else pairs
    if len(pairs) > 1:
        names = ", ".join(str(pair.uvm.path) for pair in pairs)
        raise InstallRefused(
            f"several NVIDIA drivers are installed for kernel {machine.kernel} ({names}), and it "
            "is not clear which one is used: remove those that are not."
        )
    return pairs[0]


def _absent(machine: Machine) -> str:
    if not machine.modules.is_dir():
        hint = " (this looks like a container: install on its host)" * machine.is_container()
        return f"{machine.modules}: kernel {machine.kernel} is not installed here{hint}"
    return (
        f"{machine.modules}: no NVIDIA driver is installed for kernel {machine.kernel}. "
        "Install NVIDIA's open kernel modules first, then patch them."
    )


def _stems(machine: Machine) -> list[str]:
    ours = machine.modules / OUR_FOLDER
    paths = find_modules(machine.modules, "nvidia*uvm.ko*") if machine.modules.is_dir() else []
    return sorted({module_stem(path) for path in paths if ours not in path.parents})


def _pair(machine: Machine, stem: str) -> StockModules:
    uvm = read_module(_choose(machine, stem))
    rm_stem = stem[: -len(_RM_SUFFIX)]
    try:
        return StockModules(uvm, read_module(_choose(machine, rm_stem)))
    except DriverUnavailable as error:
        raise ConfigError(
            f"{uvm.path}: there is no {rm_stem}.ko beside it; the NVIDIA driver is not whole, "
            "reinstall it."
        ) from error


def _choose(machine: Machine, stem: str) -> Path:
    """Return the file that modprobe would take if ours were not there."""
    ours = machine.modules / OUR_FOLDER
    found = [p for p in find_modules(machine.modules, f"{stem}.ko*") if ours not in p.parents]
    preferred = preferred_module(machine.modules, stem)
    if preferred in found:
        return preferred
    if not found:
        raise DriverUnavailable(_absent(machine))
    # depmod's own default when nothing is configured: updates before everything else.
    updates = [path for path in found if machine.modules / "updates" in path.parents]
    return (updates or found)[0]
