# SPDX-License-Identifier: Apache-2.0
"""The patch's sources, of which this installer is a part: building them, and what was built."""

from __future__ import annotations

import os
import pwd
import subprocess
from pathlib import Path

from driver_patch.install.kmod import ModuleFile
from driver_patch.install.machine import Failed, InstallerError, Machine, Refused, Unavailable
from driver_patch.install.nvidia import find_stock

#: What holds driver_patch/: a checkout of pyvattn, or the installed package.
HOME = Path(__file__).resolve().parents[2]


def script(name: str) -> Path:
    """Return the path of one of the patch's scripts."""
    return HOME / "driver_patch/scripts" / name


def find_built(machine: Machine) -> Path:
    """Return the module that was built for this kernel and driver.

    Raises:
        Unavailable: nothing was built, or nothing that fits.
        Refused: several fit equally.
    """
    folder = _build_folder()
    patched = [
        m for path in sorted(folder.glob("*/nvidia-uvm.ko")) if (m := ModuleFile(path)).is_patched
    ]
    fitting = [m for m in patched if m.kernel == machine.kernel and _fits(machine, m)]
    if len({module.sha256 for module in fitting}) == 1:
        return fitting[0].path
    if fitting:
        names = ", ".join(str(module.path) for module in fitting)
        raise Refused(f"several modules fit ({names}): name one with --module (make MODULE=…).")
    if machine.is_live or machine.modules.is_dir():
        find_stock(machine)  # Without a driver, that is what to say, not that nothing was built.
    held = ", ".join(f"{m.release} for kernel {m.kernel}" for m in patched) or "nothing"
    raise Unavailable(
        f"no patched nvidia-uvm.ko for kernel {machine.kernel} and the installed driver in "
        f"{folder} (there: {held}). Build it first: `make driver` or `pyvattn driver build`, with "
        "KERNEL= or --kernel where it is not the running one."
    )


def _fits(machine: Machine, module: ModuleFile) -> bool:
    try:
        return find_stock(machine, module.release).release == module.release
    except InstallerError:
        return True  # The plan says what is wrong with the driver.


def build(machine: Machine, source: Path | None = None, release: str = "") -> Path:
    """Build the patched nvidia-uvm for the machine's kernel, as ``make driver`` does.

    Without a ``source`` tree that of ``release``, by default the installed driver's,
    is looked for where its packages leave it. Returns the module.

    Raises:
        Unavailable: neither is given, and no driver is installed.
        Failed: the build failed; with its last messages.
    """
    if source is None and not release:
        release = find_stock(machine).release
    environment = {
        **os.environ,
        "KERNEL": machine.kernel,
        "DRIVER_SRC": str(source.resolve()) if source else "",
        "RELEASE": release,
        "BUILD_FOLDER": str(_build_folder()),
    }
    if not _is_checkout():
        environment.setdefault("PYVATTN_CACHE", str(_user_cache()))
    command = [str(script("make-driver"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise Failed(f"the build failed:\n{done.stderr.strip()}")
    return Path(done.stdout.strip().splitlines()[-1])


def _build_folder() -> Path:
    return HOME / "build/driver" if _is_checkout() else _user_cache() / "driver/build"


def _is_checkout() -> bool:
    return (HOME / "Makefile").is_file()


def _user_cache() -> Path:
    """The cache of who calls, also through sudo: built as oneself, installed as root."""
    caller = os.environ.get("SUDO_USER", "") if os.geteuid() == 0 else ""
    home = Path(pwd.getpwnam(caller).pw_dir) if caller else Path.home()
    return home / ".cache/pyvattn"
