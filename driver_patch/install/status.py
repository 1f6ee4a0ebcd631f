# SPDX-License-Identifier: Apache-2.0
"""What is installed, what is loaded, whether the two fit, and what to do next."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from driver_patch.install import kmod
from driver_patch.install.install import our_files
from driver_patch.install.journal import DKMS_JOURNAL, INSTALLED, Journal, Record, removed_kernels
from driver_patch.install.kmod import RELOAD_COMMANDS, MissingTool, ModuleFile
from driver_patch.install.machine import (
    InstallerError,
    LoadedUvm,
    Machine,
    Refused,
    RunningDriver,
    Unavailable,
)
from driver_patch.install.nvidia import StockModules, find_stock, require_fit
from driver_patch.install.signing import why_signed

NOT_INSTALLED = "not installed"

_NEEDS_OPEN = "The patch needs the open kernel modules; pyvattn uses the cumem driver (2M pages)."


@dataclass
class Status:
    """The state of the NVIDIA driver and of our module on a machine, for one kernel.

    ``problems`` need attention; ``advice`` is what to do next.
    """

    kernel: str
    kernel_runs: bool
    container: bool
    running: RunningDriver | None
    loaded: LoadedUvm | None
    secure_boot: str
    users: str
    installed_release: str = ""
    ours: str = NOT_INSTALLED
    problems: list[str] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)

    @property
    def has_driver(self) -> bool:
        """Whether this kernel has an NVIDIA driver, loaded or installed."""
        return bool(self.running or self.installed_release)

    def as_dict(self) -> dict[str, Any]:
        """Return the status as JSON values."""
        return {**asdict(self), "has_driver": self.has_driver}

    def rows(self) -> list[tuple[str, str]]:
        """Return the status as rows for people."""
        if not self.has_driver:
            place = "on this machine" if self.kernel_runs else "for this kernel, which does not run"
            place += " (this looks like a container)" if self.container else ""
            left = [("pyvattn's module", self.ours)] if self.ours != NOT_INSTALLED else []
            return [("kernel", self.kernel), ("NVIDIA driver", f"none {place}"), *left]
        absent = "none is loaded" if self.kernel_runs else "another kernel runs"
        loaded = "not loaded"
        if self.loaded:
            made = "patched" if self.loaded.is_patched else "as NVIDIA made it"
            loaded = f"{self.loaded.release}, {made}"
        return [
            ("kernel", self.kernel),
            ("running driver", str(self.running or absent)),
            ("installed driver", self.installed_release or "none for this kernel"),
            ("loaded nvidia-uvm", loaded),
            ("pyvattn's module", self.ours),
            ("module signature", self.secure_boot or "not asked for by this kernel"),
            ("GPU in use by", self.users),
        ]


def read_status(machine: Machine) -> Status:
    """Look at a machine. Nothing is opened but files, and nothing missing is an error."""
    runs = machine.is_running_kernel
    status = Status(
        kernel=machine.kernel,
        kernel_runs=runs,
        container=machine.is_container(),
        running=machine.running_driver() if runs else None,
        loaded=machine.loaded_uvm() if runs else None,
        secure_boot=why_signed(machine),
        users=str(machine.gpu_users()) if runs else "not known: another kernel runs",
    )
    try:
        _look_at_modules(machine, status)
    except InstallerError as error:
        status.problems.append(str(error))
    return status


def _look_at_modules(machine: Machine, status: Status) -> None:
    """Fill in what is installed, and what to do next.

    Raises:
        InstallerError: something needs attention first.
    """
    stock, absent = None, ""
    try:
        stock = find_stock(machine, status.running.release if status.running else "")
    except MissingTool:
        raise
    except Unavailable as error:
        absent = str(error)
    if stock is not None:
        status.installed_release = stock.release
        if stock.uvm.is_patched:
            status.ours = f"built into NVIDIA's by DKMS, release {stock.release}"
    record = _read_record(machine, status)
    if record is not None:
        _require_still_fit(machine, stock, record)
    if stock is None:
        status.advice.append(_advice_without_modules(machine, absent))
    else:
        _require_one_release(machine, status, stock)
        status.advice.append(_advice(machine, status, stock))
    status.advice += _leftovers(machine, status)


def _read_record(machine: Machine, status: Status) -> Record | None:
    """Return what is installed whole, and None where nothing is."""
    journal = Journal(machine)
    record = journal.read()
    if record is None:
        return None
    if record.state != INSTALLED:
        status.ours = f"interrupted while {record.state}"
        raise Refused(
            f"An install or uninstall was interrupted (while {record.state}); NVIDIA's module is "
            "untouched. Run `pyvattn driver uninstall` or `make uninstall` to undo the rest, or "
            "install again."
        )
    status.ours = f"installed, release {record.about['release']}"
    if not journal.is_intact(record):
        target, _ = our_files(machine, record.about["stem"])
        raise Refused(
            f"{target}, or the file beside it, was changed or removed since it was installed: "
            "uninstall says which, then install again."
        )
    return record


def _require_still_fit(machine: Machine, stock: StockModules | None, record: Record) -> None:
    """Packages replace the driver and leave our module: it must fit what is there now."""
    target, _ = our_files(machine, record.about["stem"])
    if stock is None:
        why = "no driver is installed any more."
    elif stock.uvm.stem != record.about["stem"]:
        why = f"the driver's own is {stock.uvm.path} now."
    else:
        try:
            return require_fit(machine, ModuleFile(target), stock)
        except InstallerError as error:
            why = str(error)
    raise Refused(
        f"The NVIDIA driver was changed since pyvattn installed {target}: {why} Uninstall now "
        "(`pyvattn driver uninstall`, `make uninstall`): the two must not run together. Then build "
        "and install again."
    )


def _require_one_release(machine: Machine, status: Status, stock: StockModules) -> None:
    """NVIDIA's modules on disk and in the kernel must be of the release that runs."""
    running = status.running.release if status.running else stock.release
    preferred = kmod.preferred(machine, stock.uvm.stem)
    taken = ModuleFile(preferred) if preferred and preferred.is_file() else stock.uvm
    if mixed := stock.mixed():
        raise Refused(mixed)
    if taken.release != running:
        raise Refused(
            f"modprobe takes {taken.path} of release {taken.release}, and the running nvidia.ko is "
            f"of {running}: the driver was upgraded since. Reboot, so that the two are the same."
        )
    if status.loaded and status.loaded.release not in (running, "unknown"):
        raise Refused(
            f"the loaded nvidia-uvm is of release {status.loaded.release}, the running driver of "
            f"{running}: reboot."
        )


def _leftovers(machine: Machine, status: Status) -> list[str]:
    """Say what upgrades have left of ours that does no harm."""
    left = [
        f"Kernel {kernel} was removed, and pyvattn's module for it was not: "
        f"`pyvattn driver uninstall --kernel {kernel}`, or `make uninstall KERNEL={kernel}`."
        for kernel in removed_kernels(machine)
        if kernel != machine.kernel
    ]
    dkms = Journal(machine, DKMS_JOURNAL).read()
    patched, installed = dkms.about["release"] if dkms else "", status.installed_release
    if patched and installed and patched != installed:
        left.append(
            f"DKMS patches release {patched} only, and the driver is of {installed} now: uninstall "
            "with --dkms (make DKMS=1), then install with it again."
        )
    return left


def _advice_without_modules(machine: Machine, absent: str) -> str:
    """Say what helps where this kernel has no NVIDIA modules on disk."""
    running, kernel = machine.running_driver(), machine.kernel
    if running is None and not any(machine.path("lib/modules").rglob("nvidia*uvm.ko*")):
        return "Nothing to patch here: pyvattn works with driver='host' (device='cpu')."
    if running and not running.is_open:
        return _NEEDS_OPEN
    if running and machine.modules.is_dir() and machine.dkms_knows(running.release):
        return (
            f"Kernel {kernel} has no NVIDIA driver yet: let DKMS build it (`dkms autoinstall -k "
            f"{kernel}` as root), and look again."
        )
    return absent


def _advice(machine: Machine, status: Status, stock: StockModules) -> str:
    running, loaded = status.running, status.loaded
    if not stock.rm.is_open or (running and not running.is_open):
        return _NEEDS_OPEN
    if loaded is not None and loaded.is_patched:
        return "The patched driver is in use."
    if status.ours != NOT_INSTALLED:
        if not machine.is_running_kernel:
            return f"The module takes effect when kernel {machine.kernel} is booted."
        return f"The module takes effect at the next boot, or now with `{RELOAD_COMMANDS}` as root."
    if machine.dkms_knows(stock.release):
        return "For pages of 64K to 256K, let DKMS build the patch: `sudo make install DKMS=1`."
    which = "" if machine.is_running_kernel else f" KERNEL={machine.kernel}"
    return f"For pages of 64K to 256K: `make driver{which}`, then `sudo make install{which}`."
