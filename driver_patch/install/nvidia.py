# SPDX-License-Identifier: Apache-2.0
"""NVIDIA's own modules of one kernel, and whether a module of ours can stand in for one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from driver_patch.install import kmod
from driver_patch.install.kmod import OUR_FOLDER, ModuleFile, module_stem
from driver_patch.install.machine import PATCH_PARAMETER, BadInput, Machine, Refused, Unavailable

_UVM_SUFFIX = "-uvm"
_SHOWN = 3


@dataclass(frozen=True)
class StockModules:
    """The modules that NVIDIA's packages installed for a kernel; ``rm`` is nvidia.ko."""

    uvm: ModuleFile
    rm: ModuleFile

    @property
    def release(self) -> str:
        """The release of nvidia.ko, such as 580.159.04."""
        return self.rm.release or self.uvm.release

    def mixed(self) -> str:
        """Say how the two differ in release; an empty string where they do not."""
        if self.uvm.release == self.release:
            return ""
        return (
            f"{self.uvm.path} is of release {self.uvm.release}, {self.rm.path} of {self.release}: "
            "the NVIDIA driver is not whole, reinstall it."
        )


def find_stock(machine: Machine, release: str = "") -> StockModules:
    """Return NVIDIA's modules, under whatever names the distribution gave them.

    Debian installs several drivers side by side (nvidia-current-uvm,
    nvidia-current-open-uvm, …); ``release`` then picks the one that fits.

    Raises:
        Unavailable: none is installed for this kernel.
        Refused: several are, and nothing tells which is used.
    """
    stems = {module_stem(path) for path in _files(machine, "nvidia*uvm")}
    pairs = [_pair(machine, stem) for stem in sorted(stems)]
    if not pairs:
        raise Unavailable(_absent(machine))
    if len(pairs) > 1:
        fitting = [pair for pair in pairs if pair.release == release and pair.rm.is_open]
        pairs = fitting if len(fitting) == 1 else pairs
    if len(pairs) > 1:
        names = ", ".join(str(pair.uvm.path) for pair in pairs)
        raise Refused(
            f"several NVIDIA drivers are installed for kernel {machine.kernel} ({names}), and it "
            "is not clear which one is used: remove those that are not."
        )
    return pairs[0]


def _absent(machine: Machine) -> str:
    which = "" if machine.is_running_kernel else f" KERNEL={machine.kernel}"
    if machine.modules.is_dir():
        return (
            f"{machine.modules}: no NVIDIA driver is installed for kernel {machine.kernel}. "
            f"Install NVIDIA's open kernel modules for it first; then `make driver{which}` and "
            f"`sudo make install{which}`."
        )
    if machine.is_container():
        return (
            f"{machine.modules}: kernel {machine.kernel} is not installed here, which looks like a "
            "container: install on its host."
        )
    held = ", ".join(machine.kernels()) or "none"
    return (
        f"{machine.modules}: kernel {machine.kernel} is not installed here (installed: {held}). "
        "Install its packages first, or name another one with --kernel (make KERNEL=…)."
    )


def _files(machine: Machine, pattern: str) -> list[Path]:
    """Return the module files of a name, other than ours."""
    ours = machine.modules / OUR_FOLDER
    found = machine.modules.rglob(f"{pattern}.ko*") if machine.modules.is_dir() else []
    return sorted(path for path in found if module_stem(path) and ours not in path.parents)


def _pair(machine: Machine, stem: str) -> StockModules:
    rm_stem = stem[: -len(_UVM_SUFFIX)]
    if not _files(machine, rm_stem):
        raise BadInput(
            f"{_files(machine, stem)[0]}: there is no {rm_stem}.ko beside it; the NVIDIA driver is "
            "not whole, reinstall it."
        )
    rm = _taken(machine, rm_stem)
    return StockModules(ModuleFile(_taken(machine, stem, rm)), ModuleFile(rm))


def _taken(machine: Machine, stem: str, rm: Path | None = None) -> Path:
    """Return the file that modprobe takes, or would if ours did not stand in for it."""
    found = _files(machine, stem)
    preferred = kmod.preferred(machine, stem)
    if preferred in found:
        return preferred
    # Ours is preferred: NVIDIA's is the one that came with the nvidia.ko in use.
    beside = [path for path in found if rm is not None and path.parent == rm.parent]
    if len(beside or found) > 1:
        names = ", ".join(map(str, found))
        raise Refused(
            f"several files could be the {stem} of kernel {machine.kernel} ({names}) and "
            f"modules.dep names none of them: run `depmod {machine.kernel}`."
        )
    return (beside or found)[0]


def require_ours(machine: Machine, module: ModuleFile) -> None:
    """Check the built module by itself: is it ours, and for this kernel?

    Raises:
        Refused: it is not.
    """
    if not module.is_patched:
        raise Refused(
            f"{module.path} is not the patched nvidia-uvm (it has no parameter {PATCH_PARAMETER}): "
            "build it with `make driver`."
        )
    if module.kernel != machine.kernel:
        raise Refused(
            f"{module.path} was built for kernel {module.kernel or '(unknown)'}, not for "
            f"{machine.kernel}: build it with `make driver KERNEL={machine.kernel}`."
        )


def require_fit(machine: Machine, module: ModuleFile, stock: StockModules) -> None:
    """Check the built module against the driver: flavour, release, would it load?

    Raises:
        Refused: it does not fit the driver on disk, or the one that runs.
    """
    running = machine.running_driver() if machine.is_running_kernel else None
    if not stock.rm.is_open:
        raise Refused(
            f"{stock.rm.path} is the proprietary flavour of the driver; the patch is for the open "
            "kernel modules. Install these first (such as nvidia-open or "
            "nvidia-driver-<branch>-open)."
        )
    if running and not running.is_open:
        raise Refused(
            f"the running driver ({running.release}) is the proprietary flavour, the installed one "
            "the open kernel modules: reboot first."
        )
    if stock.uvm.is_patched:
        raise Refused(
            f"{stock.uvm.path} holds the patch already (DKMS built it so): nothing is to be "
            "installed beside it."
        )
    if mixed := stock.mixed():
        raise Refused(mixed)
    if module.release != stock.release:
        raise Refused(
            f"{module.path} is of release {module.release}, the installed driver of "
            f"{stock.release}: build it from the source of {stock.release}."
        )
    if running and running.release != stock.release:
        raise Refused(
            f"the running driver is of release {running.release}, the installed one of "
            f"{stock.release}: reboot first, so that the two are the same."
        )
    if stock.rm.kernel == module.kernel and stock.rm.vermagic != module.vermagic:
        raise Refused(
            f"{module.path} was built with another kernel configuration: its vermagic is "
            f"{module.vermagic!r}, the driver's {stock.rm.vermagic!r}. Build it against this "
            "kernel's own headers."
        )
    if stock.uvm.kernel == module.kernel:
        _require_versions(module, stock.uvm)


def _require_versions(module: ModuleFile, stock: ModuleFile) -> None:
    """The kernel compares the checksum of every imported symbol when it loads a module."""
    if stock.versions and not module.versions:
        raise Refused(
            f"{module.path} carries no symbol versions, and this kernel asks for them: build it "
            "against this kernel's own headers."
        )
    differing = sorted(
        name
        for name, checksum in module.versions.items()
        if stock.versions.get(name, checksum) != checksum
    )
    if differing:
        more = f" and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
        raise Refused(
            f"{module.path} would not load: the versions of {', '.join(differing[:_SHOWN])}{more} "
            "are not those of the installed driver and kernel. Build it from exactly their source."
        )
