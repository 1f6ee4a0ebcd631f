# SPDX-License-Identifier: Apache-2.0
"""Builds the emulated libcuda as a shared library called ``libcuda.so.1``.

With it on ``LD_LIBRARY_PATH`` a process reaches the emulator as it would reach
NVIDIA's driver: the `cumem` driver through dlopen, cuda-python through
cuGetProcAddress.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).resolve().parents[2] / "uvm_ext"

# What only cuda-python asks for, and the two attributes that the emulator lacks.
EXTRA = r"""
#include <dlfcn.h>

#include <cstdio>
#include <cstring>
#include <string>

extern "C" int cuDeviceGetName(char* name, int length, int) {
  std::snprintf(name, static_cast<std::size_t>(length), "Emulated GPU");
  return 0;
}
extern "C" int cuDeviceTotalMem_v2(std::size_t* bytes, int) {
  *bytes = std::size_t{4} << 30;
  return 0;
}
extern "C" int cuDeviceGetAttribute(int* value, int attribute, int device) {
  if (attribute == 75) return *value = 9, 0;
  if (attribute == 76) return *value = 0, 0;
  return libcuda().cuDeviceGetAttribute(value, attribute, device);
}
extern "C" int cuGetProcAddress_v2(const char* name, void** function, int, unsigned long long,
                                   int*) {
  const std::string symbol = name;
  *function = ::dlsym(RTLD_DEFAULT, (symbol + "_v2").c_str());
  if (*function == nullptr) *function = ::dlsym(RTLD_DEFAULT, symbol.c_str());
  return *function != nullptr ? 0 : 500;
}
"""


def forwarders(missing: str) -> str:
    """Define every symbol of the table but ``missing`` as a call of the emulator."""
    header = (SOURCES / "drivers" / "libcuda.hpp").read_text()
    rows = re.search(r"#define PYVATTN_LIBCUDA_FUNCTIONS\(F\)(.*?)\n\n", header, re.S)
    assert rows is not None
    text = re.sub(r"\s*\\\n\s*", " ", rows.group(1))
    functions = re.findall(r"F\((\w+), (\w+), \((.*?)\)\)", text)
    assert len(functions) > 30
    lines = []
    for name, symbol, parameters in functions:
        arguments = ", ".join(re.findall(r"(\w+)(?:,|$)", parameters))
        if symbol not in (missing, "cuDeviceGetAttribute"):
            lines.append(
                f'extern "C" cuda::Result {symbol}({parameters}) '
                f"{{ return libcuda().{name}({arguments}); }}"
            )
    return "\n".join(lines)


class Builder:
    """Compiles the emulator once, and libraries around it as often as asked."""

    def __init__(self, folder: Path):
        compiler = shutil.which(os.environ.get("CXX", "c++"))
        if compiler is None:
            pytest.skip("no C++ compiler here")
        self.command = [compiler, "-std=c++17", "-O0", "-fPIC", f"-I{SOURCES}"]
        emulator = ["cuda_memory", "cuda_state", "cuda_streams", "control", "libcuda"]
        sources = [SOURCES / "emulation" / f"{name}.cpp" for name in emulator]
        sources.append(SOURCES / "base" / "errors.cpp")
        self.objects = [folder / f"{source.stem}-{source.parent.name}.o" for source in sources]
        for source, target in zip(sources, self.objects, strict=True):
            subprocess.run([*self.command, "-c", source, "-o", target], check=True)

    def build(self, folder: Path, missing: str = "", extra: str = EXTRA) -> Path:
        """Link ``folder/libcuda.so.1``, without the symbol ``missing``."""
        head = '#include "emulation/libcuda.hpp"\nnamespace cuda = pyvattn::cuda;\n'
        head += "using pyvattn::emulation::libcuda;\n"
        source = folder / "libcuda.cpp"
        source.write_text(head + forwarders(missing) + extra)
        library = folder / "libcuda.so.1"
        command = [*self.command, "-shared", "-o", library, source, *self.objects, "-ldl"]
        subprocess.run(command, check=True)
        return library
