# SPDX-License-Identifier: Apache-2.0
"""Check what the core in a wheel needs of a system and shows to others, from its ELF file.

It must need nothing but glibc: a C++ library would meet the one that torch brings. It runs
where pyelftools is installed, on any machine: the wheel may be for another one.
"""

import io
import sys
import zipfile
from pathlib import Path

from elftools.elf.elffile import ELFFile

GLIBC = {"libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1"}
LOADERS = {"x86_64": "ld-linux-x86-64.so.2", "aarch64": "ld-linux-aarch64.so.1"}
MACHINES = {"x86_64": "EM_X86_64", "aarch64": "EM_AARCH64"}


def core_of(wheel: Path) -> tuple[str, ELFFile]:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".so") or ".so." in n]
        return name, ELFFile(io.BytesIO(archive.read(name)))


def main() -> None:
    wheel = Path(sys.argv[1])
    name, core = core_of(wheel)
    arch = "aarch64" if "aarch64" in wheel.name else "x86_64"
    assert core["e_machine"] == MACHINES[arch], f"{name} is for {core['e_machine']}"
    assert f"-{arch}-" in name, f"{name}: Python on {arch} would not look for it"
    needed = {tag.needed for tag in core.get_section_by_name(".dynamic").iter_tags("DT_NEEDED")}
    assert needed <= GLIBC | {LOADERS[arch]}, f"{name} needs {sorted(needed)}"
    symbols = core.get_section_by_name(".dynsym").iter_symbols()
    shown = [s.name for s in symbols if s["st_shndx"] != "SHN_UNDEF" and s.name]
    assert shown == ["PyInit__native"], f"{name} shows {shown}"
    assert not core.get_section_by_name(".symtab"), f"{name} is not stripped"
    print(f"{name}: needs {', '.join(sorted(needed))}")


if __name__ == "__main__":
    main()
