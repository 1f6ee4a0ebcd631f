# SPDX-License-Identifier: Apache-2.0
"""How the `cumem` driver finds libcuda, and what it says of machines that cannot offer it.

Each case runs in a process of its own with a library of ours on the search path.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import cumem_library
import pytest

REPORT = """
from pyvattn import _native
from pyvattn.errors import Error
try:
    print("pages", _native.driver_capabilities("cumem", {device}).page_sizes)
except Error as error:
    print(type(error).__name__, error)
"""


def run(script: str, folder: Path | None) -> str:
    environment = dict(os.environ)
    environment["LD_LIBRARY_PATH"] = str(folder or "")
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def report(folder: Path | None, device: int = 0) -> str:
    return run(REPORT.format(device=device), folder)


def test_cumem_works_through_the_library_that_dlopen_finds(emulated_libcuda):
    assert report(emulated_libcuda.parent) == "pages [2097152]"


def test_the_driver_maps_and_unmaps_through_dlopen(emulated_libcuda):
    script = """
import ctypes
from pyvattn import _native
driver = _native.make_driver("cumem", 2 << 20, 1)
print(driver.capabilities.dlpack_device)
base, slab = driver.reserve(4 << 20, 2 << 20), driver.allocate_slab(2 << 20)
entry = _native.MapEntry(base, 2 << 20, slab, 0)
driver.map([entry])
print(set(ctypes.string_at(base, 2 << 20)))
driver.unmap([entry])
driver.free_slab(slab)
driver.release_reservation(base)
"""
    assert run(script, emulated_libcuda.parent).splitlines() == ["(2, 1)", "{0}"]


def test_an_ordinal_that_cuda_does_not_see(emulated_libcuda):
    said = report(emulated_libcuda.parent, device=7)
    assert said.startswith("ConfigError there is no device cuda:7: CUDA sees 2")


def test_no_libcuda(tmp_path):
    if "cannot open" not in report(None):
        pytest.skip("this machine has a libcuda.so.1 of its own")
    said = report(tmp_path)
    assert said.startswith("DriverUnavailable no NVIDIA driver library")
    assert "install NVIDIA's driver" in said


def test_something_else_under_the_name(tmp_path):
    (tmp_path / "libcuda.so.1").write_text("not a library")
    assert report(tmp_path).startswith("DriverUnavailable no NVIDIA driver library")


@pytest.mark.parametrize("missing", ["cuCtxGetId", "cuMemCreate"])
def test_too_old_a_driver_is_named_with_what_it_lacks(libcuda_builder, tmp_path, missing):
    libcuda_builder.build(tmp_path, missing=missing)
    said = report(tmp_path)
    assert said.startswith("DriverUnavailable libcuda.so.1 (for CUDA 13.0) has no " + missing)
    assert "CUDA 12.0 or later" in said


@pytest.mark.parametrize(
    ("status", "name", "advice"),
    [
        (100, "CUDA_ERROR_NO_DEVICE", "CUDA_VISIBLE_DEVICES"),
        (3, "CUDA_ERROR_NOT_INITIALIZED", "spawn"),
        (999, "CUresult 999", "nvidia-smi"),
    ],
)
def test_a_cuda_that_does_not_start_says_why(libcuda_builder, tmp_path, status, name, advice):
    body = f'extern "C" cuda::Result cuInit(unsigned) {{ return {status}; }}\n'
    libcuda_builder.build(tmp_path, missing="cuInit", extra=body + cumem_library.EXTRA)
    said = report(tmp_path)
    assert said.startswith("DriverUnavailable cuInit failed: " + name)
    assert advice in said


def test_a_device_without_virtual_memory_management(libcuda_builder, tmp_path):
    body = cumem_library.EXTRA.replace(
        "if (attribute == 75)",
        "if (attribute == 102) return *value = 0, 0;\n  if (attribute == 75)",
    )
    libcuda_builder.build(tmp_path, extra=body)
    assert "DriverUnavailable device cuda:0 has no virtual memory management" in report(tmp_path)


# --- cuda-python ---


needs_cuda_python = pytest.mark.skipif(
    importlib.util.find_spec("cuda") is None, reason="cuda-python is not installed"
)


@needs_cuda_python
def test_python_asks_devices_through_cuda_python(emulated_libcuda):
    script = """
from pyvattn import cuda
print(cuda.cuda_version(), cuda.error_name(2), cuda.memory(1).total)
for device in cuda.devices():
    print(device)
"""
    first, *devices = run(script, emulated_libcuda.parent).splitlines()
    assert first == "(13, 0) CUDA_ERROR_OUT_OF_MEMORY 4294967296"
    uuids = set()
    for ordinal, text in enumerate(devices):
        found = re.fullmatch(
            rf"Device\(ordinal={ordinal}, name='Emulated GPU', uuid='GPU-([0-9a-f-]{{36}})', "
            r"compute_capability=\(9, 0\), total_bytes=4294967296, granularity=2097152\)",
            text,
        )
        assert found
        uuids.add(found.group(1))
    assert len(uuids) == 2


@needs_cuda_python
@pytest.mark.parametrize("call", ["cuda_version()", "devices()", "memory()", "error_name(2)"])
def test_cuda_python_without_a_driver_is_a_typed_error(tmp_path, call):
    if "cannot open" not in report(None):
        pytest.skip("this machine has a libcuda.so.1 of its own")
    script = f"""
from pyvattn import cuda
from pyvattn.errors import DriverUnavailable
try:
    cuda.{call}
except DriverUnavailable as error:
    print(error)
"""
    assert run(script, tmp_path).startswith("no NVIDIA driver here")


def test_without_cuda_python_the_remedy_is_named(monkeypatch):
    from pyvattn import cuda
    from pyvattn.errors import MissingDependency

    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    with pytest.raises(MissingDependency, match=r"pip install 'pyvattn\[cuda\]'"):
        cuda.devices()
