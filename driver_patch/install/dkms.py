# SPDX-License-Identifier: Apache-2.0
"""The alternative for machines that build NVIDIA's driver with DKMS: let DKMS patch it.

A module of our own beside NVIDIA's DKMS package would fight it for the same file
name, and would outlive an upgrade of the driver. DKMS reads
``/etc/dkms/NAME-VERSION.conf`` after the package's own dkms.conf, so one line there
and one patch file are enough: every build of exactly this release, for this and
every later kernel, is patched; another release is not.
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from driver_patch.install.install import Plan, plan_undo
from driver_patch.install.journal import DKMS_JOURNAL, Journal
from driver_patch.install.machine import Machine, Refused, Unavailable
from driver_patch.install.sources import script

# Where a package keeps nvidia-uvm/ and its kin: at its top, or as NVIDIA's repository does.
_LAYOUTS = ("", "kernel-open")


@dataclass(frozen=True)
class DkmsPackage:
    """NVIDIA's driver as DKMS knows it; ``sources`` is what holds nvidia-uvm/."""

    tree: Path
    sources: Path
    name: str
    version: str

    def commands(self, kernel: str) -> str:
        """Return how to build and install it anew."""
        package = f"{self.name}/{self.version} -k {kernel} --force"
        return f"`dkms build {package} && dkms install {package}`"


def find_package(machine: Machine) -> DkmsPackage:
    """Return the DKMS package of the installed driver.

    Raises:
        Unavailable: there is none.
        Refused: there are several, or it is the proprietary flavour.
    """
    configurations = sorted(machine.path("usr/src").glob("*/dkms.conf"))
    found = [package for conf in configurations if (package := _package(conf))]
    running = machine.running_driver()
    found = [p for p in found if running and p.version == running.release] or found
    if not found:
        raise Unavailable(
            f"{machine.path('usr/src')}: no DKMS package holds NVIDIA's open kernel modules "
            "(nvidia-uvm/uvm.c): "
            + (
                "install the open flavour of the package that DKMS builds here."
                if any(machine.path("var/lib/dkms").glob("nvidia*"))
                else "DKMS builds no NVIDIA driver here, so leave --dkms out (make without DKMS=1)."
            )
        )
    if len(found) > 1:
        names = ", ".join(str(package.tree) for package in found)
        raise Refused(f"several NVIDIA drivers are known to DKMS: {names}. Remove the others.")
    for source in sorted((found[0].sources / "nvidia").glob("*.c")):
        if 'MODULE_LICENSE("NVIDIA")' in source.read_text(errors="replace"):
            raise Refused(
                f"{found[0].tree} is the proprietary flavour of the driver; the patch is for the "
                "open kernel modules. Install these first."
            )
    return found[0]


def _package(conf: Path) -> DkmsPackage | None:
    text = conf.read_text(errors="replace")
    values = dict(re.findall(r"^PACKAGE_(NAME|VERSION)=[\"']?([^\"'\s]+)", text, re.M))
    for layout in _LAYOUTS:
        sources = conf.parent / layout
        if (sources / "nvidia-uvm/uvm.c").is_file() and len(values) == 2:
            return DkmsPackage(conf.parent, sources, values["NAME"], values["VERSION"])
    return None


def plan_install(machine: Machine) -> Plan:
    """Work out which patch and which line DKMS gets, and touch nothing."""
    journal = Journal(machine, DKMS_JOURNAL)
    if journal.read() is not None:
        raise Refused("a DKMS configuration of pyvattn is there already: uninstall it first.")
    package = find_package(machine)
    name = f"pyvattn-{package.version}.patch"
    config = machine.path(f"etc/dkms/{package.name}-{package.version}.conf")
    existing = config.read_bytes() if config.exists() else b""
    line = f'# Written by pyvattn (`make install DKMS=1`).\nPATCH+=("{name}")\n'
    files = {
        package.tree / "patches" / name: _patch(package.tree),
        config: existing + line.encode(),
    }
    about = {"release": package.version, "rebuild": package.commands("KERNEL")}
    return Plan(
        "Let DKMS build the patched nvidia-uvm",
        partial(journal.apply, files, about),
        facts=[("DKMS package", f"{package.name} {package.version} ({package.tree})")],
        steps=[f"write {path}" for path in files],
        notes=[
            f"Nothing is built now. Run {package.commands(machine.kernel)} as root; DKMS signs "
            "what it builds. Later kernels get the patch by themselves.",
            "DKMS builds all of NVIDIA's modules anew from the same source; only nvidia-uvm "
            "differs.",
        ],
    )


def plan_uninstall(machine: Machine) -> Plan:
    """Work out how the DKMS configuration is put back as it was, and touch nothing."""
    journal = Journal(machine, DKMS_JOURNAL)
    plan, record = plan_undo("Let DKMS build nvidia-uvm as NVIDIA made it", journal)
    plan.notes.append(
        "Modules that DKMS has built stay until you build them anew: "
        f"{record.about.get('rebuild', '')} for each kernel."
        if record
        else "pyvattn has changed no DKMS configuration."
    )
    return plan


def _patch(tree: Path) -> bytes:
    """Return the whole patch for a source tree, new files included, for ``patch -p1``."""
    command = [sys.executable, "-B", str(script("driver_patch.py")), "patch", str(tree)]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode != 0:
        raise Refused(done.stderr.decode().strip())
    return done.stdout
