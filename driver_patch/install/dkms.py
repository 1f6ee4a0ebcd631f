"""The alternative for machines that build NVIDIA's driver with DKMS: let DKMS patch it.

A module of our own beside NVIDIA's DKMS package would fight it for the same file
name, and would outlive an upgrade of the driver. DKMS reads
``/etc/dkms/NAME-VERSION.conf`` after the package's own dkms.conf, so one line there
and one patch file are enough: every build of exactly this release, for this and
every later kernel, is patched; another release is not.
"""

from __future__ import annotations

import difflib
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from driver_patch.install import checks
from driver_patch.install.journal import DKMS_JOURNAL, INSTALLED, UNINSTALLING, Journal, locked
from driver_patch.install.machine import Machine
from driver_patch.install.plan import Plan
from pyvattn.errors import DriverUnavailable, InstallError, InstallRefused

_PATCH_SCRIPT = Path("driver_patch/scripts/driver_patch.py")
# What the patch script needs to see of a tree, and all that it may change.
_PATCHED = ("Kbuild", "nvidia-uvm")


@dataclass(frozen=True)
class DkmsPackage:
    """NVIDIA's driver as DKMS knows it."""

    tree: Path
    name: str
    version: str

    def commands(self, kernel: str) -> str:
        """Return how to build and install it anew."""
        package = f"{self.name}/{self.version} -k {kernel} --force"
        return f"`dkms build {package} && dkms install {package}`"


def find_package(machine: Machine) -> DkmsPackage:
    """Return the DKMS package of the installed driver.

    Raises:
        DriverUnavailable: there is none.
        InstallRefused: there are several, or it is the proprietary flavour.
    """
    found = [package for conf in _configurations(machine) if (package := _package(conf))]
    running = machine.running_driver()
    fitting = [p for p in found if running is not None and p.version == running.release]
    found = fitting or found
    if not found:
        raise DriverUnavailable(
            f"{machine.path('usr/src')}: no DKMS package of an NVIDIA driver: leave --dkms out."
        )
    if len(found) > 1:
        names = ", ".join(str(package.tree) for package in found)
        raise InstallRefused(
            f"several NVIDIA drivers are known to DKMS: {names}. Remove the others."
        )
    if any(_is_proprietary(path) for path in sorted((found[0].tree / "nvidia").glob("*.c"))):
        raise InstallRefused(
            f"{found[0].tree} is the proprietary flavour of the driver; the patch is for the open "
            "kernel modules. Install these first."
        )
    return found[0]


def _configurations(machine: Machine) -> list[Path]:
    return sorted(machine.path("usr/src").glob("*/dkms.conf"))


def _package(conf: Path) -> DkmsPackage | None:
    if not (conf.parent / "nvidia-uvm/uvm.c").is_file():
        return None
    text = conf.read_text(errors="replace")
    values = dict(re.findall(r"^PACKAGE_(NAME|VERSION)=[\"']?([^\"'\s]+)", text, re.M))
    if "NAME" not in values or "VERSION" not in values:
        return None
    return DkmsPackage(conf.parent, values["NAME"], values["VERSION"])


def _is_proprietary(source: Path) -> bool:
    return 'MODULE_LICENSE("NVIDIA")' in source.read_text(errors="replace")


def plan_install(machine: Machine, checkout: Path) -> Plan:
    """Work out what would be written and touch nothing."""
    plan = Plan("Let DKMS build the patched nvidia-uvm")
    if Journal(machine, DKMS_JOURNAL).read() is not None:
        plan.refusals.append(
            "a DKMS configuration of pyvattn is there already: uninstall it first."
        )
        return plan
    try:
        package = find_package(machine)
        files = _files(machine, checkout, package)
    except (DriverUnavailable, InstallRefused) as error:
        plan.refusals.append(str(error))
        plan.unavailable = isinstance(error, DriverUnavailable)
        return plan
    plan.facts.append(("DKMS package", f"{package.name} {package.version} ({package.tree})"))
    plan.refusals += checks.check_root(machine)
    plan.steps += [f"write {path}" for path in files]
    plan.notes += [
        f"Nothing is built now. Run {package.commands(machine.kernel)} as root; DKMS signs what it "
        "builds. Later kernels get the patch by themselves.",
        "DKMS builds all of NVIDIA's modules anew from the same source; only nvidia-uvm differs.",
    ]
    return plan


def install(machine: Machine, checkout: Path) -> Plan:
    """Write the patch and the line that makes DKMS apply it.

    Raises:
        InstallRefused: a check failed; nothing was touched.
        InstallError: writing failed; everything is as before.
    """
    with locked(machine):
        plan = plan_install(machine, checkout)
        plan.raise_if_refused()
        package = find_package(machine)
        files = _files(machine, checkout, package)
        journal = Journal(machine, DKMS_JOURNAL)
        try:
            journal.begin(
                files, {"release": package.version, "rebuild": package.commands("KERNEL")}
            )
            journal.put(files)
            journal.mark(INSTALLED)
        except BaseException as error:
            if (record := journal.read()) is not None:
                journal.put_back(record)
                journal.forget(record)
            if isinstance(error, OSError):
                raise InstallError(f"{error}. Everything is as it was before.") from error
            raise
    return plan


def plan_uninstall(machine: Machine) -> Plan:
    """Work out what would be removed and touch nothing."""
    plan = Plan("Let DKMS build nvidia-uvm as NVIDIA made it")
    journal = Journal(machine, DKMS_JOURNAL)
    record = journal.read()
    if record is None:
        plan.nothing_to_do = True
        plan.notes.append("pyvattn has changed no DKMS configuration.")
        return plan
    verbs = {True: "put back", False: "remove"}
    plan.steps += [f"{verbs[bool(entry.before)]} {entry.path}" for entry in record.entries]
    plan.refusals += [
        f"{path} was changed since pyvattn wrote it: look at it, move it away, and repeat."
        for path in journal.foreign_changes(record)
    ]
    plan.refusals += checks.check_root(machine)
    plan.notes.append(
        "Modules that DKMS has built stay until you build them anew: "
        f"{record.about.get('rebuild', '')} for each kernel."
    )
    return plan


def uninstall(machine: Machine) -> Plan:
    """Put the DKMS configuration back as it was.

    Raises:
        InstallRefused: a file was changed since; nothing was touched.
        InstallError: a step failed; running it again goes on where it stopped.
    """
    with locked(machine):
        plan = plan_uninstall(machine)
        plan.raise_if_refused()
        journal = Journal(machine, DKMS_JOURNAL)
        try:
            if (record := journal.read()) is not None:
                journal.mark(UNINSTALLING)
                journal.put_back(record)
                journal.forget(record)
        except OSError as error:
            raise InstallError(f"{error}. Repeat the uninstall; it goes on from here.") from error
    return plan


def _files(machine: Machine, checkout: Path, package: DkmsPackage) -> dict[Path, bytes]:
    name = f"pyvattn-{package.version}.patch"
    config = machine.path(f"etc/dkms/{package.name}-{package.version}.conf")
    existing = config.read_bytes() if config.exists() else b""
    line = f'# Written by pyvattn (`make install DKMS=1`).\nPATCH+=("{name}")\n'
    return {
        package.tree / "patches" / name: tree_patch(checkout, package.tree),
        config: existing + line.encode(),
    }


def tree_patch(checkout: Path, tree: Path) -> bytes:
    """Return the whole patch for a source tree, new files included, for ``patch -p1``.

    Raises:
        InstallRefused: the patch does not fit the tree.
    """
    with tempfile.TemporaryDirectory(prefix="pyvattn-dkms-") as folder:
        copy = Path(folder)
        for name in _PATCHED:
            source = tree / name
            shutil.copytree(source, copy / name) if source.is_dir() else shutil.copy(source, copy)
        command = [sys.executable, "-B", str(checkout / _PATCH_SCRIPT), "apply", str(copy)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise InstallRefused(done.stderr.strip().replace(str(copy), str(tree)))
        return b"".join(
            _file_patch(tree / name, copy / name, name)
            for name in sorted(str(p.relative_to(copy)) for p in copy.rglob("*") if p.is_file())
        )


def _file_patch(before: Path, after: Path, name: str) -> bytes:
    old = before.read_bytes().splitlines(keepends=True) if before.exists() else []
    new = after.read_bytes().splitlines(keepends=True)
    if old == new:
        return b""
    origin = f"a/{name}" if before.exists() else "/dev/null"
    lines = difflib.diff_bytes(
        difflib.unified_diff, old, new, origin.encode(), f"b/{name}".encode(), lineterm=b"\n"
    )
    # Unified diffs mark a last line without a newline; difflib does not.
    return b"".join(
        line if line.endswith(b"\n") else line + b"\n\\ No newline at end of file\n"
        for line in lines
    )
