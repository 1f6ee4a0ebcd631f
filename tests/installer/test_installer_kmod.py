# SPDX-License-Identifier: Apache-2.0
"""What is asked of kmod: its answers are understood, and where it is missing, that is said."""

from __future__ import annotations

import gzip
import lzma
import shutil
import subprocess
from pathlib import Path

import pytest
from acts import install, uninstall
from scratch_machine import KERNEL, PATCHED, RELEASE, VERMAGIC, ScratchMachine, elf_module

from driver_patch.install import kmod
from driver_patch.install.install import Request, plan_install
from driver_patch.install.kmod import MissingTool, ModuleFile
from driver_patch.install.machine import BadInput, Machine
from driver_patch.install.status import read_status

TOOLS = ("depmod", "modinfo", "modprobe")

needs_kmod = pytest.mark.skipif(
    not all(kmod.find_tool(name) for name in TOOLS), reason="kmod is not installed"
)


@pytest.fixture(params=["fake", pytest.param("real", marks=needs_kmod)])
def whose(request, scratch: ScratchMachine) -> str:
    """The stand-in of the other tests, and kmod itself: both must pass the same tests."""
    if request.param == "real":
        for name in TOOLS:
            (scratch.bin / name).unlink()
        scratch.depmod = lambda: kmod.run_depmod(Machine(scratch.root, KERNEL))
        for name in ("modules.order", "modules.builtin"):
            scratch.write(f"lib/modules/{KERNEL}/{name}", "")
        scratch.depmod()
    return request.param


def test_a_module_says_what_it_is(whose, tmp_path):
    path = tmp_path / "m.ko.xz"
    path.write_bytes(lzma.compress(elf_module(parm=PATCHED, versions={"kfree": 1, "nvUvm": 2**31})))
    module = ModuleFile(path)
    assert (module.release, module.vermagic, module.kernel) == (RELEASE, VERMAGIC.strip(), KERNEL)
    assert module.is_open
    assert module.is_patched
    assert not module.is_signed
    assert module.versions == {"kfree": "0x00000001", "nvUvm": "0x80000000"}
    path.write_bytes(lzma.compress(elf_module(license="NVIDIA")))
    module = ModuleFile(path)
    assert not module.is_open
    assert not module.is_patched
    assert module.versions == {}


@pytest.mark.usefixtures("whose")
@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"not a module" * 99])
def test_what_is_no_module_is_bad_input(data, tmp_path):
    path = tmp_path / "m.ko"
    path.write_bytes(data)
    with pytest.raises(BadInput, match=r"m\.ko: not a module that kmod can read"):
        ModuleFile(path)


def test_install_and_uninstall_as_kmod_sees_them(whose, scratch, machine):
    stock = kmod.preferred(machine, "nvidia-uvm")
    assert stock == scratch.modules / "updates/dkms/nvidia-uvm.ko"
    install(machine, Request(scratch.built))
    assert (
        kmod.preferred(machine, "nvidia-uvm") == scratch.modules / "updates/pyvattn/nvidia-uvm.ko"
    )
    assert read_status(machine).problems == []
    assert any("byte for byte as before" in note for note in uninstall(machine))
    assert kmod.preferred(machine, "nvidia-uvm") == stock
    assert kmod.preferred(machine, "no-such-module") is None


@pytest.mark.parametrize("tool", TOOLS[1:])
def test_without_kmod_the_package_is_named(tool, scratch, machine, monkeypatch):
    scratch.install_driver(versions={"kfree": 1})
    monkeypatch.setattr(
        kmod, "find_tool", lambda name: None if name == tool else shutil.which(name)
    )
    with pytest.raises(MissingTool, match=f"{tool} is not installed: install the package kmod"):
        plan_install(machine, Request(scratch.built))


def test_status_without_kmod_shows_the_rest(scratch, machine, monkeypatch):
    scratch.load_uvm(patched=False)
    monkeypatch.setattr(kmod, "find_tool", lambda _name: None)
    status = read_status(machine)
    assert status.loaded is not None
    assert status.problems == ["modinfo is not installed: install the package kmod."]


@needs_kmod
@pytest.mark.parametrize(("suffix", "press"), [("gz", gzip.compress), ("zst", None)])
def test_whatever_kmod_decompresses_is_read(suffix, press, tmp_path: Path):
    names = {"gz": "+ZLIB", "zst": "+ZSTD"}
    version = subprocess.run([kmod.find_tool("modinfo"), "--version"], capture_output=True)
    if names[suffix] not in version.stdout.decode():
        pytest.skip(f"this kmod was built without {names[suffix][1:]}")
    plain, path = tmp_path / "m.ko", tmp_path / f"m.ko.{suffix}"
    plain.write_bytes(elf_module(parm=PATCHED))
    if press:
        path.write_bytes(press(plain.read_bytes()))
    elif shutil.which("zstd"):
        subprocess.run(["zstd", "-q", plain, "-o", path], check=True)
    else:
        pytest.skip("zstd is not installed")
    assert ModuleFile(path).is_patched
