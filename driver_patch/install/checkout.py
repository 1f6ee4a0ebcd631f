"""The checkout that holds ``driver_patch/``: where it is, what was built there, building there."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from driver_patch.install.machine import Machine
from driver_patch.install.modules import ModuleFile, read_module
from driver_patch.install.stock import find_stock
from pyvattn.errors import ConfigError, DriverUnavailable, InstallError, InstallRefused

_BUILD_SCRIPT = Path("driver_patch/scripts/make-driver")
_BUILT = "build/driver"


def find_checkout(named: Path | None = None) -> Path:
    """Return the checkout of pyvattn: the one named, the current directory's, or the package's own.

    Raises:
        DriverUnavailable: there is none.
    """
    package = Path(__file__).resolve().parents[2]
    for start in [named.resolve()] if named else [Path.cwd(), *Path.cwd().parents, package]:
        if (start / "driver_patch/src/uvm_vattn.c").is_file():
            return start
    raise DriverUnavailable(
        f"{named or Path.cwd()}: no checkout of pyvattn (it holds no driver_patch/). The kernel "
        "patch is not part of the Python package: clone the repository and run this there, or "
        "name it with --checkout."
    )


def find_built(machine: Machine, checkout: Path) -> Path:
    """Return the module that ``make driver`` built for this kernel and driver.

    Raises:
        DriverUnavailable: nothing was built, or nothing that fits.
        InstallRefused: several fit equally.
    """
    folder = checkout / _BUILT
    built = [read_module(path) for path in sorted(folder.glob("*/nvidia-uvm.ko"))]
    patched = [module for module in built if module.is_patched]
    fitting = [m for m in patched if m.kernel == machine.kernel and _fits(machine, m)]
    if len({module.sha256 for module in fitting}) == 1:
        return fitting[0].path
    if fitting:
        names = ", ".join(str(module.path) for module in fitting)
        raise InstallRefused(
            f"several modules fit ({names}): name one with --module (make MODULE=…)"
        )
    if machine.is_live or machine.modules.is_dir():
        find_stock(machine)  # Without a driver, that is what to say, not that nothing was built.
    held = ", ".join(f"{m.release} for kernel {m.kernel}" for m in patched) or "nothing"
    raise DriverUnavailable(
        f"no patched nvidia-uvm.ko for kernel {machine.kernel} and the installed driver in "
        f"{folder} (there: {held}). Run `make driver` first, or name one with --module "
        "(make MODULE=…)."
    )


def _fits(machine: Machine, module: ModuleFile) -> bool:
    try:
        return find_stock(machine, module.release).release == module.release
    except (DriverUnavailable, InstallRefused, ConfigError):
        return True  # The plan says what is wrong with the driver.


def build(
    machine: Machine, checkout: Path, source: Path | None = None, release: str | None = None
) -> Path:
    """Build the patched nvidia-uvm for the machine's kernel, as ``make driver`` does.

    Without a ``source`` tree that of ``release``, by default the installed driver's,
    is looked for where its packages leave it. Returns the module.

    Raises:
        DriverUnavailable: neither is given, and no driver is installed.
        InstallError: the build failed; with its last messages.
    """
    if source is None and release is None:
        release = find_stock(machine).release
    environment = {
        **os.environ,
        "KERNEL": machine.kernel,
        "DRIVER_SRC": str(source.resolve()) if source else "",
        "RELEASE": release or "",
    }
    command = [str(checkout / _BUILD_SCRIPT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise InstallError(f"the build failed:\n{done.stderr.strip()}")
    return Path(done.stdout.strip().splitlines()[-1])
