# SPDX-License-Identifier: Apache-2.0
"""A made-up machine in a directory: modules, a driver, processes, and the programs it has."""

from __future__ import annotations

import lzma
import os
import struct
import subprocess
import sys
from pathlib import Path

# As Debian's backports name it: the plus sign is special where patterns are matched.
KERNEL = "6.12.9+deb12-amd64"
RELEASE = "580.159.04"
VERMAGIC = f"{KERNEL} SMP preempt mod_unload modversions "
OPEN = "Dual MIT/GPL"
PATCHED = ("uvm_vattn_enable:Offer the pyvattn ioctls (bool)",)

_RUNNING = {
    True: "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {}  Release Build  (builder)",
    False: "NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}  Tue Mar  4 05:06:07 UTC 2025",
}

_FAKE_KMOD = Path(__file__).with_name("fake_kmod.py")


def elf_module(
    *,
    release: str = RELEASE,
    vermagic: str = VERMAGIC,
    license: str = OPEN,
    parm: tuple[str, ...] = (),
    versions: dict[str, int] | None = None,
    machine: int = 62,
    filler: bytes = b"",
) -> bytes:
    """An ELF file with the sections that make it a kernel module to look at."""
    info = [f"version={release}", f"license={license}", f"vermagic={vermagic}"]
    info += [f"parm={value}" for value in parm]
    sections = [
        (".modinfo", "\0".join([*info, ""]).encode()),
        (".text", filler),
        (
            "__versions",
            b"".join(struct.pack("<Q56s", c, n.encode()) for n, c in (versions or {}).items()),
        ),
    ]
    names = b"\0" + b"".join(name.encode() + b"\0" for name, _ in sections) + b".shstrtab\0"
    body, rows, offset = b"", [bytes(64)], 64
    for name, content in [*sections, (".shstrtab", names)]:
        at = names.index(name.encode() + b"\0")
        rows.append(struct.pack("<IIQQQQIIQQ", at, 1, 0, 0, offset, len(content), 0, 0, 1, 0))
        body += content
        offset += len(content)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01",
        *(1, machine, 1, 0, 0, offset, 0, 64, 0, 0, 64, len(rows), len(rows) - 1),
    )
    return header + body + b"".join(rows)


class ScratchMachine:
    """A root directory with an open NVIDIA driver installed and running, and nobody using it."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self.bin = folder / "bin"
        self.built = folder / "build" / "nvidia-uvm.ko"
        self.modules = self.root / "lib/modules" / KERNEL
        for name in ("etc/depmod.d", "var/lib", "proc/self", "sys/module", "boot"):
            (self.root / name).mkdir(parents=True)
        self.write("etc/depmod.d/ubuntu.conf", "search updates ubuntu built-in\n")
        for name in ("depmod", "modinfo", "modprobe"):
            self.tool(name, f"#!{sys.executable} -IS\n{_FAKE_KMOD.read_text()}")
        self.install_driver()
        self.run_driver()
        self.build()

    def write(self, name: str, data: str | bytes) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        os.utime(path, (1_600_000_000, 1_600_000_000))
        return path

    def tool(self, name: str, script: str) -> None:
        self.bin.mkdir(exist_ok=True)
        path = self.bin / name
        path.write_text(script)
        path.chmod(0o755)

    def install_driver(self, stem: str = "nvidia", folder: str = "updates/dkms", **about) -> None:
        """NVIDIA's two modules, one of them compressed; ``about`` as for elf_module."""
        rm = {key: value for key, value in about.items() if key != "versions"}
        self.write(f"lib/modules/{KERNEL}/{folder}/{stem}.ko.xz", lzma.compress(elf_module(**rm)))
        uvm = {**about, "license": OPEN}
        self.write(f"lib/modules/{KERNEL}/{folder}/{stem}-uvm.ko", elf_module(**uvm))
        self.depmod()

    def remove_driver(self) -> None:
        for path in self.modules.rglob("nvidia*.ko*"):
            path.unlink()
        self.depmod()

    def depmod(self) -> None:
        config = self.root / "etc/depmod.d"
        subprocess.run([self.bin / "depmod", "-b", self.root, "-C", config, KERNEL], check=True)

    def run_driver(self, release: str = RELEASE, is_open: bool = True) -> None:
        self.write("proc/driver/nvidia/version", _RUNNING[is_open].format(release) + "\nGCC\n")

    def load_uvm(self, patched: bool, references: int = 0, release: str = RELEASE) -> None:
        self.write("sys/module/nvidia_uvm/version", f"{release}\n")
        self.write("sys/module/nvidia_uvm/refcnt", f"{references}\n")
        parameter = "sys/module/nvidia_uvm/parameters/uvm_vattn_enable"
        if patched:
            self.write(parameter, "Y\n")
        else:
            (self.root / parameter).unlink(missing_ok=True)

    def build(self, **about) -> Path:
        """The module that `make driver` would have built."""
        self.built.parent.mkdir(exist_ok=True)
        self.built.write_bytes(elf_module(**{"parm": PATCHED, "filler": b"ours" * 64, **about}))
        return self.built

    def process(self, pid: int, name: str, *devices: str) -> None:
        self.write(f"proc/{pid}/comm", f"{name}\n")
        folder = self.root / f"proc/{pid}/fd"
        folder.mkdir()
        for number, device in enumerate(("/dev/null", *devices)):
            (folder / str(number)).symlink_to(device)

    def secure_boot(self, *enrolled: bytes) -> None:
        efi = "sys/firmware/efi/efivars"
        flag = b"\x06\0\0\0\x01"
        self.write(f"{efi}/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c", flag)
        listed = b"\x06\0\0\0" + b"".join(b"signature list" + cert for cert in enrolled)
        self.write(f"{efi}/MokListRT-605dab50-e046-4300-abb6-3dd810dd8b23", listed)

    def preferred(self, stem: str = "nvidia-uvm") -> str:
        lines = (self.modules / "modules.dep").read_text().splitlines()
        return next(line.rstrip(":") for line in lines if f"/{stem}.ko" in line)

    def snapshot(self) -> dict[str, tuple[object, ...]]:
        """Every path with its kind, mode, contents and time.

        Directories go without a time, and so does modules.dep: depmod writes it anew.
        """
        entries: dict[str, tuple[object, ...]] = {}
        for path in sorted(self.root.rglob("*")):
            stat, name = path.lstat(), str(path.relative_to(self.root))
            if path.is_symlink():
                entries[name] = ("link", os.readlink(path))
            elif path.is_dir():
                entries[name] = ("directory", stat.st_mode)
            else:
                when = stat.st_mtime_ns if path.name != "modules.dep" else None
                entries[name] = ("file", stat.st_mode, path.read_bytes(), when)
        return entries
