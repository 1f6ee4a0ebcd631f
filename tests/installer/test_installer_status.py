# SPDX-License-Identifier: Apache-2.0
"""Status, reloading and reading modules."""

from __future__ import annotations

import os
import pwd
import shutil
from pathlib import Path

import pytest
from acts import install
from scratch_machine import KERNEL, PATCHED, RELEASE, VERMAGIC, elf_module

from driver_patch.install import sources
from driver_patch.install.install import Request
from driver_patch.install.kmod import reload_uvm
from driver_patch.install.machine import Failed, Machine, Refused, Unavailable
from driver_patch.install.sources import build, find_built
from driver_patch.install.status import Status, read_status


def test_a_machine_without_a_driver_is_no_error(tmp_path):
    status = read_status(Machine(tmp_path, KERNEL))
    assert not status.has_driver
    assert not status.problems
    assert "none on this machine" in str(status.rows())


def test_a_container_is_recognised(tmp_path):
    (tmp_path / ".dockerenv").touch()
    status = read_status(Machine(tmp_path, KERNEL))
    assert "container" in str(status.rows())


def test_a_stock_driver_is_told_how_to_get_fine_pages(scratch, machine):
    scratch.load_uvm(patched=False)
    status = read_status(machine)
    assert status.running is not None
    assert status.running.release == RELEASE
    assert status.running.is_open
    assert status.loaded is not None
    assert not status.loaded.is_patched
    assert any("make install" in line for line in status.advice)


def test_the_proprietary_driver_is_told_apart(scratch, machine):
    scratch.run_driver(is_open=False)
    status = read_status(machine)
    assert status.running is not None
    assert str(status.running) == f"{RELEASE}, proprietary kernel modules"
    assert any("open kernel modules" in line for line in status.advice)


def test_after_an_install_it_waits_for_a_reload_then_is_in_use(scratch, machine):
    install(machine, Request(scratch.built))
    scratch.load_uvm(patched=False)
    assert any("takes effect" in line for line in read_status(machine).advice)
    scratch.load_uvm(patched=True)
    assert read_status(machine).advice == ["The patched driver is in use."]


def test_a_module_that_dkms_patched_is_recognised(scratch, machine):
    scratch.install_driver(parm=PATCHED)
    scratch.load_uvm(patched=False)
    status = read_status(machine)
    assert "by DKMS" in status.ours
    assert any("takes effect" in line for line in status.advice)


def test_a_changed_file_is_a_problem(scratch, machine):
    install(machine, Request(scratch.built))
    (scratch.modules / "updates/pyvattn/nvidia-uvm.ko").write_bytes(b"?")
    assert any("changed" in problem for problem in read_status(machine).problems)


def test_modules_of_two_releases_in_one_kernel_are_a_problem(scratch, machine):
    scratch.load_uvm(patched=True, release="570.1")
    assert any("570.1" in problem for problem in read_status(machine).problems)


def test_a_preferred_module_of_another_release_than_the_running_one_is_a_problem(scratch, machine):
    scratch.install_driver(release="590.1")
    (problem,) = read_status(machine).problems
    assert f"{scratch.modules}/updates/dkms/nvidia-uvm.ko of release 590.1" in problem
    assert f"the running nvidia.ko is of {RELEASE}" in problem
    assert "Reboot" in problem


def test_modules_of_two_releases_on_disk_are_a_problem(scratch, machine):
    scratch.write(f"lib/modules/{KERNEL}/updates/dkms/nvidia-uvm.ko", elf_module(release="590.1"))
    (problem,) = read_status(machine).problems
    assert "590.1" in problem
    assert "not whole" in problem
    with pytest.raises(Refused, match="not whole"):
        install(machine, Request(scratch.built))


NEW = "6.12.99+deb12-amd64"


def _status_of_the_new_kernel(scratch, *, installed: bool) -> Status:
    scratch.write("proc/sys/kernel/osrelease", f"{KERNEL}\n")
    if installed:
        scratch.write(f"lib/modules/{NEW}/modules.dep", "")
    return read_status(Machine(scratch.root, NEW))


def test_a_kernel_that_is_not_there_is_not_advised_to_build(scratch):
    status = _status_of_the_new_kernel(scratch, installed=False)
    assert not status.has_driver
    (advice,) = status.advice
    assert f"kernel {NEW} is not installed here (installed: {KERNEL})" in advice


def test_a_kernel_without_a_driver_is_advised_to_get_one_first(scratch):
    status = _status_of_the_new_kernel(scratch, installed=True)
    assert not status.has_driver
    (advice,) = status.advice
    assert f"no NVIDIA driver is installed for kernel {NEW}" in advice
    assert f"make driver KERNEL={NEW}" in advice


def test_where_dkms_builds_the_driver_it_is_to_build_it_for_the_new_kernel(scratch):
    (scratch.root / f"var/lib/dkms/nvidia/{RELEASE}").mkdir(parents=True)
    (advice,) = _status_of_the_new_kernel(scratch, installed=True).advice
    assert f"dkms autoinstall -k {NEW}" in advice
    assert "make driver" not in advice


def test_a_new_kernel_with_a_driver_is_advised_to_build_for_it(scratch):
    for name in ("nvidia", "nvidia-uvm"):
        module = elf_module(vermagic=VERMAGIC.replace(KERNEL, NEW))
        scratch.write(f"lib/modules/{NEW}/updates/{name}.ko", module)
    scratch.load_uvm(patched=True)
    status = _status_of_the_new_kernel(scratch, installed=True)
    assert status.installed_release == RELEASE
    (advice,) = status.advice
    assert f"`make driver KERNEL={NEW}`, then `sudo make install KERNEL={NEW}`" in advice


def test_a_container_is_told_to_install_on_its_host(scratch, machine):
    scratch.remove_driver()
    shutil.rmtree(scratch.modules)
    (scratch.root / ".dockerenv").touch()
    (advice,) = read_status(machine).advice
    assert "on its host" in advice


def test_dkms_is_advised_where_it_builds_the_driver(scratch, machine):
    (scratch.root / f"var/lib/dkms/nvidia/{RELEASE}").mkdir(parents=True)
    (advice,) = read_status(machine).advice
    assert "sudo make install DKMS=1" in advice


def test_a_record_that_cannot_be_read_is_a_problem(scratch, machine):
    install(machine, Request(scratch.built))
    (scratch.root / f"var/lib/pyvattn/driver/{KERNEL}/manifest.json").write_text("{")
    assert any("cannot be understood" in problem for problem in read_status(machine).problems)


def test_processes_that_vanish_or_hold_other_files_are_left_out(scratch, machine):
    scratch.process(10, "bash", "/dev/pts/0")
    scratch.process(11, "python3", "/dev/nvidia0", "/dev/nvidia0", "/dev/nvidia-uvm")
    (scratch.root / "proc/12").mkdir()
    users = machine.gpu_users().users
    assert users == ("python3 (pid 11: /dev/nvidia-uvm, /dev/nvidia0)",)


def _modprobe_that_loads(scratch, patched: bool) -> None:
    module = scratch.root / "sys/module/nvidia_uvm"
    scratch.tool("rmmod", f'#!/bin/sh\n[ "$1" = nvidia_uvm ] && rm -r {module}\n')
    parameter = f"mkdir {module}/parameters; touch {module}/parameters/uvm_vattn_enable"
    scratch.tool("modprobe", f"#!/bin/sh\nmkdir {module}\n{parameter if patched else ''}\n")


def test_reloading_loads_what_was_installed(scratch, machine):
    scratch.load_uvm(patched=False)
    _modprobe_that_loads(scratch, patched=True)
    reload_uvm(machine, patched=True)
    assert machine.loaded_uvm().is_patched


def test_reloading_notices_when_another_module_came(scratch, machine):
    scratch.load_uvm(patched=False)
    _modprobe_that_loads(scratch, patched=False)
    with pytest.raises(Failed, match="instead of the patched"):
        reload_uvm(machine, patched=True)


def test_reloading_reports_what_rmmod_says(scratch, machine):
    scratch.load_uvm(patched=False)
    scratch.tool("rmmod", "#!/bin/sh\necho rmmod: Module is in use >&2; exit 1\n")
    with pytest.raises(Failed, match="Module is in use"):
        reload_uvm(machine, patched=True)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    (tmp_path / "checkout").mkdir()
    (tmp_path / "checkout/Makefile").touch()
    monkeypatch.setattr(sources, "HOME", tmp_path / "checkout")
    return tmp_path / "checkout"


def _built(checkout, *modules: bytes) -> None:
    for number, data in enumerate(modules):
        folder = checkout / f"build/driver/{number}"
        folder.mkdir(parents=True)
        (folder / "nvidia-uvm.ko").write_bytes(data)


def test_of_what_was_built_the_module_that_fits_is_taken(scratch, machine, checkout):
    _built(
        checkout,
        elf_module(),
        elf_module(parm=PATCHED, release="535.1"),
        elf_module(parm=PATCHED),
        elf_module(parm=PATCHED, vermagic="6.12.0 SMP "),
    )
    assert find_built(machine).parent.name == "2"


def test_two_builds_that_fit_are_for_the_user_to_choose_from(scratch, machine, checkout):
    _built(checkout, elf_module(parm=PATCHED), elf_module(parm=PATCHED, filler=b"another"))
    with pytest.raises(Refused, match="several modules fit"):
        find_built(machine)


def test_without_a_build_it_says_what_is_there(scratch, machine, checkout):
    _built(checkout, elf_module(parm=PATCHED, release="535.1"))
    with pytest.raises(Unavailable, match=r"there: 535.1 for kernel.*make driver"):
        find_built(machine)


def _build_script(checkout, script: str) -> None:
    path = checkout / "driver_patch/scripts/make-driver"
    path.parent.mkdir(parents=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_a_build_is_for_the_installed_release_and_kernel(scratch, machine, checkout):
    _build_script(checkout, 'echo "compiling" >&2; echo "noise"; echo "/b/$RELEASE-$KERNEL.ko"')
    assert str(build(machine)) == f"/b/{RELEASE}-{KERNEL}.ko"


def test_a_build_takes_the_source_that_is_named(scratch, machine, checkout, tmp_path):
    scratch.remove_driver()
    _build_script(checkout, 'echo "$DRIVER_SRC/nvidia-uvm.ko"')
    assert build(machine, source=tmp_path) == tmp_path / "nvidia-uvm.ko"
    with pytest.raises(Unavailable, match="no NVIDIA driver"):
        build(machine)


def test_a_build_that_fails_tells_what_the_script_said(scratch, machine, checkout):
    _build_script(checkout, "echo no headers here >&2; exit 1")
    with pytest.raises(Failed, match="no headers here"):
        build(machine)


def test_an_installed_package_builds_in_the_users_cache(
    scratch, machine, checkout, tmp_path, monkeypatch
):
    (checkout / "Makefile").unlink()  # What a wheel installs has none.
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SUDO_USER", raising=False)
    monkeypatch.delenv("PYVATTN_CACHE", raising=False)
    cache = tmp_path / "home/.cache/pyvattn"
    _build_script(checkout, 'echo "$PYVATTN_CACHE:$BUILD_FOLDER"')
    assert str(build(machine)) == f"{cache}:{cache}/driver/build"
    built = cache / "driver/build/one/nvidia-uvm.ko"
    built.parent.mkdir(parents=True)
    built.write_bytes(elf_module(parm=PATCHED))
    assert find_built(machine) == built
    caller = pwd.getpwuid(os.getuid())
    monkeypatch.setenv("SUDO_USER", caller.pw_name)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    in_home = Path(caller.pw_dir) / ".cache/pyvattn"
    assert str(build(machine)) == f"{in_home}:{in_home}/driver/build"
