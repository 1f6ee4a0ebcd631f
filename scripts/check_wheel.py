# SPDX-License-Identifier: Apache-2.0
"""Check an installed wheel: what it ships, and that it works without torch and numpy."""

import ctypes
import importlib.util
import json
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

MAX_BYTES = 3 << 20
# What others call by name, with the bit that lets them.
PROGRAMS = ("install/pyvattn-driver", "scripts/driver_patch.py", "scripts/make-driver")
PROGRAMS += ("scripts/build-driver", "scripts/fetch-debian")


def check_contents(wheel: Path) -> None:
    assert wheel.stat().st_size <= MAX_BYTES, f"{wheel.name} has {wheel.stat().st_size} bytes"
    files = {file.filename: file for file in zipfile.ZipFile(wheel).infolist()}
    names = list(files)
    top = {name.split("/")[0] for name in names}
    info = next(name for name in top if name.endswith(".dist-info"))
    assert top == {"pyvattn", info}, f"top-level names: {sorted(top)}"
    patch = ("src/uvm_vattn.c", "uapi/uvm_vattn_ioctl.h", "hooks/hooks.py", "LICENSES/MIT.txt")
    patch += PROGRAMS
    library = ("py.typed", "_native.pyi", "cli/__init__.py", "cache.py")
    for needed in (*library, *(f"driver_patch/{name}" for name in patch)):
        assert f"pyvattn/{needed}" in names, f"pyvattn/{needed} is missing"
    for program in PROGRAMS:
        mode = files[f"pyvattn/driver_patch/{program}"].external_attr >> 16
        assert mode & 0o111, f"{program} cannot be executed: {mode:o}"
    assert any(name.startswith("pyvattn/_native.") and name.endswith(".so") for name in names)
    strays = [name for name in names if name.endswith((".cpp", ".hpp", ".a", ".pyc"))]
    assert not strays, f"files that do not belong in a wheel: {strays}"


def check_environment() -> None:
    for absent in ("torch", "numpy", "cli", "uvm_ext"):
        assert importlib.util.find_spec(absent) is None, f"{absent} can be imported"


def check_linkage() -> None:
    """The core must load where there is no CUDA: libcuda is opened only when it is asked for."""
    import pyvattn._native

    maps = Path("/proc/self/maps").read_text()
    assert "libcuda" not in maps, "the core loads libcuda on import"
    assert pyvattn._native.__file__.startswith(sysconfig.get_paths()["platlib"])


def check_drivers() -> None:
    """Emulated machines are for tests of the tree: a wheel must not offer them."""
    from pyvattn import _native

    names = _native.driver_names()
    assert names == ["host", "host-accounting", "cumem", "stock-uvm", "patched"], names
    doubles = [name for name in dir(_native) if "emulat" in name and name != "emulates"]
    assert not doubles, f"test doubles in the wheel: {doubles}"
    core = Path(_native.__file__).read_bytes()
    assert b"-emulated" not in core, "the core of the wheel holds emulated drivers"


class DLTensor(ctypes.Structure):
    """The part of dlpack.h's DLTensor that is needed to find a row."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", ctypes.c_int32 * 2),
        ("ndim", ctypes.c_int32),
        ("dtype", ctypes.c_uint8 * 4),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


def row_address(view: object, row: int, item_bytes: int) -> int:
    """Where a row of a tensor view lies, from DLPack alone: no numpy is here."""
    capsule = view.__dlpack__()
    pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
    pointer_of.restype, pointer_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    tensor = DLTensor.from_address(pointer_of(capsule, b"dltensor"))
    return tensor.data + tensor.byte_offset + row * tensor.strides[0] * item_bytes


def check_cache() -> None:
    import pyvattn

    spec = pyvattn.CacheSpec(
        layers=2, kv_heads=2, head_dim=64, dtype="float16", max_slots=4, max_tokens=4096
    )
    with pyvattn.KVCache(spec, device="cpu", memory="64MiB") as cache:
        slot = cache.acquire(tokens=100)
        cache.step({slot: 100})
        k, _ = cache.layer(0, from_dlpack=lambda view: row_address(view, slot.index, 2))
        token = b"\x5a" * (2 * 64 * 2)
        ctypes.memmove(k, token, len(token))
        assert ctypes.string_at(k, len(token)) == token
        assert cache.stats().pages_mapped > 0
        cache.release(slot)
    assert "numpy" not in sys.modules
    assert "torch" not in sys.modules


def check_command_line() -> None:
    program = Path(sys.executable).with_name("pyvattn")
    shown = subprocess.run([program, "--help"], check=True, capture_output=True, text=True).stdout
    assert "Usage: pyvattn" in shown, shown
    info = _json_of(program, "info", "--probe")
    assert info["drivers"], info
    shape = ("--layers", "2", "--kv-heads", "2", "--head-dim", "64", "--memory", "1GiB")
    assert _json_of(program, "replay", "--limit", "40", *shape)
    check_installer(program)


def _json_of(program: Path, *words: str) -> dict:
    done = subprocess.run([program, *words, "--json"], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def check_installer(program: Path) -> None:
    """The installer of the kernel patch runs; in an empty root it finds no driver."""
    with tempfile.TemporaryDirectory() as root:
        where = ["--root", root, "--kernel", "6.1.0-1-amd64"]
        status = subprocess.run(
            [program, "driver", "status", *where], capture_output=True, text=True
        )
        assert status.returncode == 3, status.stderr
        assert "NVIDIA driver  none" in status.stdout, status.stdout
        command = [program, "driver", "plan", *where]
        plan = subprocess.run(command, capture_output=True, text=True, check=False)
        assert plan.returncode == 3, plan.stderr
        assert "no patched nvidia-uvm.ko for kernel 6.1.0-1-amd64" in plan.stderr, plan.stderr


def main() -> None:
    wheel = Path(sys.argv[1])
    check_contents(wheel)
    check_environment()
    check_linkage()
    check_drivers()
    check_cache()
    check_command_line()
    print(f"wheel: {wheel.name} ({wheel.stat().st_size / 1024:.0f} KiB) works on its own")


if __name__ == "__main__":
    main()
