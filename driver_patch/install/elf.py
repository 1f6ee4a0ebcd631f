"""The three things that are read out of a kernel module: its modinfo, versions and signature.

Format: ELF-64, little endian, which is what every platform of NVIDIA's driver uses.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from pyvattn.errors import ConfigError

#: What the kernel looks for at the very end of a signed module.
SIGNATURE_MAGIC = b"~Module signature appended~\n"

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_VERSION_BYTES = 64
_MACHINES = {62: "x86_64", 183: "aarch64", 21: "ppc64le"}
_NO_BITS = 8


@dataclass(frozen=True)
class ElfModule:
    """What a kernel module says about itself.

    ``info`` holds each modinfo key's values in order, ``versions`` the checksum
    of every symbol it imports (empty for a kernel without MODVERSIONS).
    """

    machine: str
    info: dict[str, tuple[str, ...]]
    versions: dict[str, int]
    signed: bool

    def first(self, key: str) -> str:
        """Return the first value of a modinfo key, or an empty string."""
        return self.info.get(key, ("",))[0]


def parse_module(data: bytes, name: str) -> ElfModule:
    """Read the bytes of an uncompressed module; ``name`` is for messages.

    Raises:
        ConfigError: the bytes are not a kernel module.
    """
    try:
        machine, sections = _sections(data)
    except (struct.error, IndexError, ValueError, OverflowError) as error:
        raise ConfigError(f"{name}: not a kernel module (64-bit ELF, little endian)") from error
    if ".modinfo" not in sections:
        raise ConfigError(f"{name}: not a kernel module (it has no .modinfo section)")
    return ElfModule(
        machine=machine,
        info=_modinfo(sections[".modinfo"]),
        versions=_versions(sections.get("__versions", b"")),
        signed=data.endswith(SIGNATURE_MAGIC),
    )


def _sections(data: bytes) -> tuple[str, dict[str, bytes]]:
    header = _HEADER.unpack_from(data)
    ident, machine, table, size, count, names_index = (
        header[0],
        header[2],
        header[6],
        header[11],
        header[12],
        header[13],
    )
    if ident[:6] != b"\x7fELF\x02\x01" or size != _SECTION.size:
        raise ValueError("not ELF-64, little endian")
    rows = [_SECTION.unpack_from(data, table + size * index) for index in range(count)]
    names = _content(data, rows[names_index])
    sections = {}
    for row in rows:
        end = names.index(b"\0", row[0])
        sections[names[row[0] : end].decode()] = _content(data, row)
    return _MACHINES.get(machine, f"ELF machine {machine}"), sections


def _content(data: bytes, row: tuple[int, ...]) -> bytes:
    kind, offset, size = row[1], row[4], row[5]
    if kind == _NO_BITS:
        return b""
    if offset + size > len(data):
        raise ValueError("a section lies past the end")
    return data[offset : offset + size]


def _modinfo(section: bytes) -> dict[str, tuple[str, ...]]:
    info: dict[str, tuple[str, ...]] = {}
    for entry in section.split(b"\0"):
        key, equals, value = entry.decode(errors="replace").partition("=")
        if equals:
            info[key] = (*info.get(key, ()), value)
    return info


def _versions(section: bytes) -> dict[str, int]:
    versions = {}
    for start in range(0, len(section) - _VERSION_BYTES + 1, _VERSION_BYTES):
        checksum, name = struct.unpack_from("<Q56s", section, start)
        versions[name.split(b"\0")[0].decode(errors="replace")] = checksum
    return versions
