"""Making modprobe find our module: depmod, and the line that makes it prefer ours.

Two files of one name below ``updates`` (ours, and what DKMS built) are equal to
depmod's search order; it takes whichever it meets first. Only an ``override``
line decides, and only reading the result proves it.
"""

from __future__ import annotations

import re
from pathlib import Path

from driver_patch.install.machine import Machine
from driver_patch.install.modules import preferred_module
from driver_patch.install.stock import OUR_FOLDER
from driver_patch.install.tools import find_tool, run_tool
from pyvattn.errors import InstallError

_CONFIG_FOLDERS = ("etc/depmod.d", "run/depmod.d", "usr/lib/depmod.d", "lib/depmod.d")


def override_line(stem: str, kernel: str) -> str:
    """Return the contents of our file in ``/etc/depmod.d``.

    The kernel is an extended regular expression: in Debian's 6.12.95+deb12-amd64 the plus
    sign would not stand for itself.
    """
    pattern = re.sub(r"[^\w~-]", r"[\g<0>]", kernel)
    return (
        "# Written by pyvattn; removed by `make uninstall` or `pyvattn driver uninstall`.\n"
        f"override {stem} ^{pattern}$ {OUR_FOLDER}\n"
    )


def run_depmod(machine: Machine) -> None:
    """Let depmod write ``modules.dep`` and its kin anew.

    Raises:
        InstallError: there is no depmod, or it failed.
    """
    tool = find_tool("depmod")
    if tool is None:
        raise InstallError("depmod is not installed (package kmod)")
    command = [tool]
    if not machine.is_live:
        # With -b alone depmod would read the configuration of this machine.
        command += ["-b", str(machine.root)]
        for name in _CONFIG_FOLDERS:
            command += ["-C", str(machine.path(name))]
    run_tool([*command, machine.kernel])


def check_preferred(machine: Machine, target: Path) -> None:
    """Check that modprobe would now load ``target``.

    Raises:
        InstallError: it would load another file; names the configuration that says so.
    """
    stem = target.name[: -len(".ko")]
    actual = preferred_module(machine.modules, stem)
    if actual == target:
        return
    rivals = ", ".join(map(str, _rivals(machine, stem)))
    raise InstallError(
        f"depmod prefers {actual or 'no file at all'} to {target}"
        + (f"; {rivals} says so: remove the override there." if rivals else ".")
    )


def _rivals(machine: Machine, stem: str) -> list[Path]:
    ours = machine.path("etc/depmod.d") / f"pyvattn-{machine.kernel}.conf"
    return [
        path
        for name in _CONFIG_FOLDERS
        for path in sorted(machine.path(name).glob("*.conf"))
        if path != ours and f"override {stem} " in path.read_text(errors="replace")
    ]
