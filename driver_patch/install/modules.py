"""Kernel modules on disk: what a file says about itself, and which one modprobe would take."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import subprocess
import zlib
from dataclasses import dataclass
from pathlib import Path

from driver_patch.install.elf import ElfModule, parse_module
from driver_patch.install.tools import find_tool
from pyvattn.errors import ConfigError

#: A module parameter that only the patched nvidia-uvm has; tells it from a stock one.
PATCH_PARAMETER = "uvm_vattn_enable"

_SUFFIXES = (".ko", ".ko.xz", ".ko.gz", ".ko.zst")


@dataclass(frozen=True)
class ModuleFile:
    """A kernel module file, read and checked; ``sha256`` is of the file as it lies on disk."""

    path: Path
    sha256: str
    elf: ElfModule

    @property
    def stem(self) -> str:
        """The file's name without ``.ko`` and compression: what modprobe knows it by."""
        return module_stem(self.path)

    @property
    def release(self) -> str:
        """NVIDIA's release, such as 580.159.04."""
        return self.elf.first("version")

    @property
    def vermagic(self) -> str:
        """What the kernel compares with its own before it loads the module."""
        return self.elf.first("vermagic").strip()

    @property
    def kernel(self) -> str:
        """The kernel release that the module was built for."""
        return (self.vermagic.split() or [""])[0]

    @property
    def is_open(self) -> bool:
        """Whether the licence is that of the open kernel modules."""
        return "GPL" in self.elf.first("license")

    @property
    def is_patched(self) -> bool:
        """Whether this nvidia-uvm holds the pyvattn ioctls."""
        return any(
            value.startswith(f"{PATCH_PARAMETER}:") for value in self.elf.info.get("parm", ())
        )


def module_stem(path: Path) -> str:
    """``nvidia-uvm`` for ``…/nvidia-uvm.ko.zst``; an empty string for what is no module."""
    for suffix in _SUFFIXES:
        if path.name.endswith(suffix):
            return path.name[: -len(suffix)]
    return ""


def read_module(path: Path) -> ModuleFile:
    """Read a module, compressed or not.

    Raises:
        ConfigError: no such file, or it is not a kernel module.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    return ModuleFile(
        path=path,
        sha256=hashlib.sha256(raw).hexdigest(),
        elf=parse_module(_decompress(raw, path), str(path)),
    )


def _decompress(raw: bytes, path: Path) -> bytes:
    try:
        if path.suffix == ".xz":
            return lzma.decompress(raw)
        if path.suffix == ".gz":
            return gzip.decompress(raw)
    except (lzma.LZMAError, OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{path}: cannot be decompressed: {error}") from error
    if path.suffix == ".zst":
        return _decompress_zstd(raw, path)
    return raw


def _decompress_zstd(raw: bytes, path: Path) -> bytes:
    tool = find_tool("zstd")
    if tool is None:
        raise ConfigError(f"{path}: the program zstd is needed to read it; install zstd")
    done = subprocess.run([tool, "-dcq"], input=raw, capture_output=True, check=False)
    if done.returncode != 0:
        reason = done.stderr.decode(errors="replace").strip()
        raise ConfigError(f"{path}: cannot be decompressed: {reason}")
    return done.stdout


def find_modules(directory: Path, pattern: str) -> list[Path]:
    """Return the module files below ``directory`` whose names match ``pattern``, sorted."""
    return sorted(path for path in directory.rglob(pattern) if module_stem(path))


def preferred_module(directory: Path, stem: str) -> Path | None:
    """Return the file that ``modules.dep`` of ``/lib/modules/KERNEL`` names for a module.

    None where there is no ``modules.dep`` or it does not know the module.
    """
    try:
        text = (directory / "modules.dep").read_text()
    except OSError:
        return None
    for line in text.splitlines():
        path = Path(line.split(":", 1)[0])
        if module_stem(path) == stem:
            return directory / path
    return None
