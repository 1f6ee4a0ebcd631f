"""What is installed, what is loaded, whether the two fit, and what to do next."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from driver_patch.install import signing
from driver_patch.install.journal import INSTALLED, Journal, Record
from driver_patch.install.machine import LoadedUvm, Machine, RunningDriver
from driver_patch.install.plan import RELOAD_COMMANDS, describe_users, our_files
from driver_patch.install.processes import GpuUsers, gpu_users
from driver_patch.install.stock import StockModules, find_stock
from pyvattn.errors import ConfigError, DriverUnavailable, InstallError, InstallRefused


@dataclass(frozen=True)
class Status:
    """The state of the NVIDIA driver and of our module on a machine.

    ``problems`` need somebody's attention; ``advice`` is what to do next.
    """

    kernel: str
    container: bool
    running: RunningDriver | None
    loaded: LoadedUvm | None
    installed_release: str
    ours: str
    secure_boot: str
    users: str
    problems: tuple[str, ...]
    advice: tuple[str, ...]

    @property
    def has_driver(self) -> bool:
        """Whether there is an NVIDIA driver at all, loaded or installed for this kernel."""
        return bool(self.running or self.installed_release)

    def as_dict(self) -> dict[str, Any]:
        """Return the status as JSON values."""
        return {**asdict(self), "has_driver": self.has_driver}

    def rows(self) -> list[tuple[str, str]]:
        """Return the status as rows for people."""
        if not self.has_driver:
            place = " (this looks like a container)" if self.container else ""
            return [("kernel", self.kernel), ("NVIDIA driver", f"none on this machine{place}")]
        return [
            ("kernel", self.kernel),
            ("running driver", _running_text(self.running)),
            ("installed driver", self.installed_release or "none for this kernel"),
            ("loaded nvidia-uvm", _loaded_text(self.loaded)),
            ("pyvattn's module", self.ours),
            ("module signature", self.secure_boot or "not asked for by this kernel"),
            ("GPU in use by", self.users),
        ]


def _running_text(running: RunningDriver | None) -> str:
    return f"{running.release}, {running.flavour} kernel modules" if running else "none is loaded"


def _loaded_text(loaded: LoadedUvm | None) -> str:
    if loaded is None:
        return "not loaded"
    return f"{loaded.release}, {'patched' if loaded.is_patched else 'as NVIDIA made it'}"


def read_status(machine: Machine) -> Status:
    """Look at a machine. Nothing is opened but files, and nothing missing is an error."""
    problems: list[str] = []
    stock = _stock(machine, problems)
    record = _record(machine, problems)
    running, loaded = machine.running_driver(), machine.loaded_uvm()
    problems += _problems(machine, record, stock, running, loaded)
    users = gpu_users(machine) if machine.is_running_kernel else GpuUsers((), 0)
    return Status(
        kernel=machine.kernel,
        container=machine.is_container(),
        running=running,
        loaded=loaded,
        installed_release=stock.release if stock else "",
        ours=_ours(record, stock),
        secure_boot=signing.why_signed(machine),
        users=describe_users(users),
        problems=tuple(problems),
        advice=tuple(_advice(record, stock, running, loaded)) if not problems else (),
    )


def _stock(machine: Machine, problems: list[str]) -> StockModules | None:
    running = machine.running_driver()
    try:
        return find_stock(machine, running.release if running else "")
    except DriverUnavailable:
        return None
    except (InstallRefused, ConfigError) as error:
        problems.append(str(error))
        return None


def _record(machine: Machine, problems: list[str]) -> Record | None:
    try:
        return Journal(machine).read()
    except InstallError as error:
        problems.append(str(error))
        return None


def _ours(record: Record | None, stock: StockModules | None) -> str:
    if record is None and stock is not None and stock.uvm.is_patched:
        return f"built into NVIDIA's by DKMS, release {stock.release}"
    if record is None:
        return "not installed"
    if record.state != INSTALLED:
        return f"interrupted while {record.state}"
    return f"installed, release {record.about.get('release', '?')}"


def _problems(
    machine: Machine,
    record: Record | None,
    stock: StockModules | None,
    running: RunningDriver | None,
    loaded: LoadedUvm | None,
) -> list[str]:
    problems = []
    if record is not None and record.state != INSTALLED:
        problems.append(
            f"An install or uninstall was interrupted (while {record.state}); NVIDIA's module is "
            "untouched. Run `pyvattn driver uninstall` or `make uninstall` to undo the rest, or "
            "install again."
        )
    elif record is not None and not Journal(machine).is_intact(record):
        target, _ = our_files(machine, record.about.get("stem", "nvidia-uvm"))
        problems.append(
            f"{target}, or the file beside it, was changed or removed since it was installed."
        )
    release = record.about.get("release", "") if record else ""
    if stock is not None and release and release != stock.release:
        problems.append(
            f"pyvattn's module is of release {release}, the driver of {stock.release}: the "
            "driver was upgraded meanwhile. Uninstall now (the two must not run together), then "
            "build and install again."
        )
    if (
        running is not None
        and loaded is not None
        and loaded.release
        not in (
            running.release,
            "unknown",
        )
    ):
        problems.append(
            f"the loaded nvidia-uvm is of release {loaded.release}, the running driver of "
            f"{running.release}: uninstall, and reboot."
        )
    return problems


def _advice(
    record: Record | None,
    stock: StockModules | None,
    running: RunningDriver | None,
    loaded: LoadedUvm | None,
) -> list[str]:
    if stock is None and running is None:
        return ["Nothing to patch here: pyvattn works with driver='host' (device='cpu')."]
    if (running and not running.is_open) or (stock and not stock.rm.is_open):
        return [
            "The patch needs the open kernel modules; pyvattn uses the cumem driver (2M pages)."
        ]
    if loaded is not None and loaded.is_patched:
        return ["The patched driver is in use."]
    if record is not None or (stock is not None and stock.uvm.is_patched):
        return [
            f"The module takes effect at the next boot, or now with `{RELOAD_COMMANDS}` as root."
        ]
    return ["For pages of 64K to 256K: `make driver`, then `sudo make install`."]
