# SPDX-License-Identifier: Apache-2.0
"""Kernel modules as kmod sees them: what a file says, which one modprobe takes, loading it.

Nothing of what kmod knows is worked out here: it reads modules, compressed or not, and it
decides which of several files is the one that is loaded.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

from driver_patch.install.machine import PATCH_PARAMETER, BadInput, Failed, Machine, Unavailable

#: Where our module goes, below /lib/modules/KERNEL.
OUR_FOLDER = "updates/pyvattn"
RELOAD_COMMANDS = "rmmod nvidia_uvm && modprobe nvidia-uvm"

_KMOD = ("depmod", "modinfo", "modprobe", "rmmod")
# An ordinary user's PATH lacks them, and sudo may reset it.
_SYSTEM_PATHS = ("/usr/local/sbin", "/usr/sbin", "/sbin")
_SUFFIX = re.compile(r"\.ko(\.xz|\.gz|\.zst)?$")
_DEPMOD_CONFIG = ("etc/depmod.d", "run/depmod.d", "usr/lib/depmod.d", "lib/depmod.d")
_IMAGES = (
    "boot/initrd.img-{}",
    "boot/initramfs-{}.img",
    "boot/initrd-{}",
    "boot/initramfs-linux.img",
)
_LISTERS = ("lsinitramfs", "lsinitrd", "lsinitcpio")
_UPDATERS = (
    ("update-initramfs", "`update-initramfs -u -k {}`"),
    ("dracut", "`dracut --force --kver {}`"),
    ("mkinitcpio", "`mkinitcpio -P`"),
)


class MissingTool(Unavailable):
    """A program that is needed is not installed; the message names its package."""


def find_tool(name: str) -> str | None:
    """Return the path of a program, also of one in sbin; None where it is not installed."""
    return shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", ""), *_SYSTEM_PATHS)))


def run_tool(name: str, *arguments: str) -> str:
    """Run a program to its end and return what it wrote on stdout.

    Raises:
        MissingTool: it is not installed.
        Failed: it failed; with what it wrote on stderr.
    """
    tool = find_tool(name)
    if tool is None:
        package = "kmod" if name in _KMOD else name
        raise MissingTool(f"{name} is not installed: install the package {package}.")
    done = subprocess.run([tool, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = (done.stderr or done.stdout).strip() or "it said nothing"
        command = " ".join((name, *arguments))
        raise Failed(f"`{command}` failed with {done.returncode}: {reason}")
    return done.stdout


class ModuleFile:
    """A kernel module file and what modinfo says about it.

    ``sha256`` is of the file as it lies on disk.

    Raises:
        BadInput: no such file, or kmod cannot read it as a module.
        MissingTool: kmod is not installed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        try:
            self.sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise BadInput(f"{path}: cannot be read: {error.strerror}") from error
        try:
            text = run_tool("modinfo", str(self.path))
        except Failed as error:
            raise BadInput(f"{path}: not a module that kmod can read: {error}") from error
        info: dict[str, str] = dict(
            re.findall(r"^(version|license|vermagic|sig_id): +(.*)", text, re.M)
        )
        self.release = info.get("version", "")
        self.vermagic = info.get("vermagic", "").strip()
        self.is_open = "GPL" in info.get("license", "")
        self.is_patched = bool(re.search(rf"^parm: +{PATCH_PARAMETER}:", text, re.M))
        self.is_signed = "sig_id" in info

    @property
    def stem(self) -> str:
        """The file's name without ``.ko`` and compression: what modprobe knows it by."""
        return module_stem(self.path)

    @property
    def kernel(self) -> str:
        """The kernel release that the module was built for."""
        return (self.vermagic.split() or [""])[0]

    @functools.cached_property
    def versions(self) -> dict[str, str]:
        """Checksum of every symbol that it imports; empty for a kernel without MODVERSIONS."""
        rows = run_tool("modprobe", "--dump-modversions", str(self.path)).splitlines()
        return {name: checksum for checksum, name in (row.split() for row in rows)}


def module_stem(path: Path) -> str:
    """``nvidia-uvm`` for ``…/nvidia-uvm.ko.zst``; an empty string for what is no module."""
    return _SUFFIX.sub("", path.name) if _SUFFIX.search(path.name) else ""


def preferred(machine: Machine, stem: str) -> Path | None:
    """Return the file that modprobe takes for a module; None where depmod knows none."""
    try:
        found = run_tool("modinfo", "-b", str(machine.root), "-k", machine.kernel, "-n", stem)
    except Failed:
        return None
    _, folder, name = found.strip().rpartition(f"/lib/modules/{machine.kernel}/")
    return machine.modules / name if folder else Path(name)


def override_line(stem: str, kernel: str) -> str:
    """Return the contents of our file in ``/etc/depmod.d``.

    Two files of one name below ``updates`` (ours, and what DKMS built) are equal to depmod's
    search order; only an ``override`` line decides. The kernel is an extended regular
    expression: in Debian's 6.12.95+deb12-amd64 the plus sign would not stand for itself.
    """
    pattern = re.sub(r"[^\w~-]", r"[\g<0>]", kernel)
    return (
        "# Written by pyvattn; removed by `make uninstall` or `pyvattn driver uninstall`.\n"
        f"override {stem} ^{pattern}$ {OUR_FOLDER}\n"
    )


def run_depmod(machine: Machine) -> None:
    """Let depmod write ``modules.dep`` and its kin anew."""
    arguments = []
    if not machine.is_live:
        # With -b alone depmod would read the configuration of this machine.
        arguments += ["-b", str(machine.root)]
        for name in _DEPMOD_CONFIG:
            arguments += ["-C", str(machine.path(name))]
    run_tool("depmod", *arguments, machine.kernel)


def require_preferred(machine: Machine, target: Path) -> None:
    """Check that modprobe would now load ``target``.

    Raises:
        Failed: it would load another file; names the configuration that says so.
    """
    stem = module_stem(target)
    actual = preferred(machine, stem)
    if actual == target:
        return
    ours = machine.path("etc/depmod.d") / f"pyvattn-{machine.kernel}.conf"
    rivals = [
        str(path)
        for name in _DEPMOD_CONFIG
        for path in sorted(machine.path(name).glob("*.conf"))
        if path != ours and f"override {stem} " in path.read_text(errors="replace")
    ]
    why = f"; {', '.join(rivals)} says so: remove the override there." if rivals else "."
    raise Failed(f"depmod prefers {actual or 'no file at all'} to {target}{why}")


def reload_uvm(machine: Machine, patched: bool) -> None:
    """Unload nvidia-uvm, load it as modprobe finds it, and check which one came.

    nvidia.ko and what else depends on it stay loaded.

    Raises:
        Failed: a step failed, or the other module was loaded.
    """
    if machine.loaded_uvm() is not None:
        run_tool("rmmod", "nvidia_uvm")
    run_tool("modprobe", "nvidia-uvm")
    loaded = machine.loaded_uvm()
    if loaded is None:
        raise Failed("modprobe succeeded, but nvidia_uvm is not loaded.")
    if loaded.is_patched != patched:
        names = {True: "the patched", False: "NVIDIA's"}
        raise Failed(
            f"modprobe loaded {names[loaded.is_patched]} nvidia-uvm instead of {names[patched]}: "
            "look at /etc/modprobe.d."
        )


def initramfs_note(machine: Machine) -> str:
    """Say what the initramfs means for an install; an empty string where it means nothing.

    A copy of nvidia-uvm there is loaded before ours. Nothing is rebuilt: that is the
    administrator's decision, and the note says how.
    """
    images = (machine.path(name.format(machine.kernel)) for name in _IMAGES)
    image = next((path for path in images if path.is_file()), None)
    if image is None:
        return ""
    updates = (text.format(machine.kernel) for tool, text in _UPDATERS if find_tool(tool))
    how = f"run {next(updates, 'your initramfs tool')} after installing and after uninstalling."
    lister = next(filter(find_tool, _LISTERS), None)
    if lister is None:
        return f"{image} may hold a copy of nvidia-uvm (no program here lists it). If so, {how}"
    try:
        held = re.search(r"nvidia[^/\s]*uvm\.ko", run_tool(lister, str(image)))
    except Failed as error:
        return f"{image} may hold a copy of nvidia-uvm ({error}). If so, {how}"
    note = f"{image} holds a copy of nvidia-uvm that is loaded at boot, before this one: {how}"
    return note if held else ""
