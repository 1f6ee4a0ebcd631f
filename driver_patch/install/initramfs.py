"""Whether the initramfs holds a copy of nvidia-uvm, which would be loaded instead of ours."""

from __future__ import annotations

import re

from driver_patch.install.machine import Machine
from driver_patch.install.tools import find_tool, run_tool
from pyvattn.errors import InstallError

_IMAGES = (
    "boot/initrd.img-{}",
    "boot/initramfs-{}.img",
    "boot/initrd-{}",
    "boot/initramfs-linux.img",
)
_LISTERS = ("lsinitramfs", "lsinitrd", "lsinitcpio")
_UPDATERS = (
    ("update-initramfs", "update-initramfs -u -k {}"),
    ("dracut", "dracut --force --kver {}"),
    ("mkinitcpio", "mkinitcpio -P"),
)
_UVM = re.compile(r"nvidia[^/\s]*uvm\.ko")


def initramfs_note(machine: Machine) -> str:
    """Say what the initramfs means for an install; an empty string where it means nothing.

    Nothing is rebuilt: that is the administrator's decision, and the note says how.
    """
    image = next(
        (path for name in _IMAGES if (path := machine.path(name.format(machine.kernel))).is_file()),
        None,
    )
    if image is None:
        return ""
    update = next((text for tool, text in _UPDATERS if find_tool(tool)), "")
    command = f"`{update.format(machine.kernel)}`" if update else "your initramfs tool"
    lister = next((tool for name in _LISTERS if (tool := find_tool(name))), None)
    try:
        if lister is not None:
            if not _UVM.search(run_tool([lister, str(image)])):
                return ""
            return (
                f"{image} holds a copy of nvidia-uvm that is loaded at boot, before this one: "
                f"run {command} after installing and after uninstalling."
            )
        reason = "no program is installed that lists it"
    except InstallError as error:
        reason = str(error)
    return (
        f"{image} may hold a copy of nvidia-uvm ({reason}). If it does, run {command} after "
        "installing and after uninstalling."
    )
