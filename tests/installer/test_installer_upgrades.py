# SPDX-License-Identifier: Apache-2.0
"""Upgrades that nobody watches: what a package manager does to the driver under our module.

Each replaces NVIDIA's files and runs depmod, as a package's scripts do, and leaves our module and
its override. `status` must name what came of it with a remedy that works, and end with 1.
"""

from __future__ import annotations

import json
import shutil

import pytest
from acts import dkms_install, dkms_uninstall, install, uninstall
from scratch_machine import KERNEL, PATCHED, RELEASE, ScratchMachine, elf_module

from driver_patch.install import main as front_end
from driver_patch.install.install import Request, plan_install
from driver_patch.install.journal import DKMS_JOURNAL, Journal
from driver_patch.install.machine import Machine
from driver_patch.install.status import read_status

NEW = "580.190.03"
OURS = "updates/pyvattn/nvidia-uvm.ko"
NEW_KERNEL = "6.12.99+deb12-amd64"


@pytest.fixture
def installed(scratch: ScratchMachine, machine: Machine) -> ScratchMachine:
    """A machine that serves with our module when the package manager wakes up."""
    scratch.install_driver(versions={"kfree": 1, "nvUvmInterfaceDupMemory": 2})
    scratch.build(versions={"kfree": 1, "nvUvmInterfaceDupMemory": 2})
    install(machine, Request(scratch.built))
    reboot(scratch)
    assert read_status(machine).problems == []
    return scratch


def reboot(scratch: ScratchMachine) -> None:
    """Load what modprobe takes, whether or not the two fit."""
    rm = _modinfo(scratch, "nvidia")
    uvm = _modinfo(scratch, "nvidia-uvm")
    if rm is None:
        (scratch.root / "proc/driver/nvidia/version").unlink(missing_ok=True)
        shutil.rmtree(scratch.root / "sys/module/nvidia_uvm", ignore_errors=True)
        return
    scratch.run_driver(rm.release, rm.is_open)
    scratch.load_uvm(patched=uvm.is_patched, release=uvm.release)


def _modinfo(scratch: ScratchMachine, stem: str):
    from driver_patch.install.kmod import ModuleFile, preferred

    path = preferred(Machine(scratch.root, KERNEL), stem)
    return ModuleFile(path) if path and path.is_file() else None


def _replaced_in_place(scratch):
    scratch.install_driver(release=NEW)


def _moved_to_another_folder(scratch):
    shutil.rmtree(scratch.modules / "updates/dkms")
    scratch.install_driver(folder="kernel/nvidia-580", release=NEW)


def _renamed(scratch):
    shutil.rmtree(scratch.modules / "updates/dkms")
    scratch.install_driver("nvidia-current-open", release=NEW)


def _made_proprietary(scratch):
    scratch.install_driver(license="NVIDIA")


def _rebuilt_with_another_interface(scratch):
    scratch.install_driver(versions={"kfree": 1, "nvUvmInterfaceDupMemory": 3})


def _patched_by_dkms_as_well(scratch):
    scratch.install_driver(parm=PATCHED)


def _removed(scratch):
    shutil.rmtree(scratch.modules / "updates/dkms")
    scratch.depmod()


def _unpacked_by_half(scratch):
    scratch.write(f"lib/modules/{KERNEL}/updates/dkms/nvidia-uvm.ko", elf_module(release=NEW))
    scratch.depmod()


UPGRADES = {
    "in place": (_replaced_in_place, NEW),
    "into another folder": (_moved_to_another_folder, NEW),
    "to a package with other names": (_renamed, "nvidia-current-open-uvm.ko"),
    "to the proprietary flavour": (_made_proprietary, "proprietary flavour"),
    "same release, other interface": (
        _rebuilt_with_another_interface,
        "the versions of nvUvmInterfaceDupMemory",
    ),
    "patched by DKMS meanwhile": (_patched_by_dkms_as_well, "holds the patch already"),
    "driver removed": (_removed, "no driver is installed any more"),
    "interrupted in the middle": (_unpacked_by_half, "not whole"),
}


def _status(scratch: ScratchMachine, capsys, kernel: str = KERNEL) -> tuple[int, dict]:
    words = ["status", "--json", "--root", str(scratch.root), "--kernel", kernel]
    return front_end.main(words), json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("rebooted", [False, True], ids=["before the reboot", "after it"])
@pytest.mark.parametrize("kind", UPGRADES)
def test_what_an_upgrade_did_is_named_and_the_uninstall_cures_it(
    kind, rebooted, installed, machine, capsys
):
    upgrade, words = UPGRADES[kind]
    upgrade(installed)
    if rebooted and kind != "to a package with other names":
        reboot(installed)
    code, status = _status(installed, capsys)
    assert code == 1
    (problem,) = status["problems"]
    assert words in problem
    assert "Uninstall now" in problem
    assert OURS in problem
    uninstall(machine)
    assert not (installed.modules / OURS).exists()
    assert not any("changed since pyvattn" in text for text in read_status(machine).problems)
    assert Journal(machine).read() is None


def test_after_the_upgrade_uninstall_reboot_and_a_new_build_all_is_well(installed, machine):
    _replaced_in_place(installed)
    reboot(installed)
    uninstall(machine)
    (problem,) = read_status(machine).problems
    assert f"the loaded nvidia-uvm is of release {RELEASE}" in problem
    assert "reboot" in problem
    reboot(installed)
    assert read_status(machine).problems == []
    installed.build(release=NEW)
    install(machine, Request(installed.built))
    reboot(installed)
    status = read_status(machine)
    assert status.problems == []
    assert status.advice == ["The patched driver is in use."]


def test_installing_over_it_is_the_same_cure(installed, machine):
    _replaced_in_place(installed)
    reboot(installed)
    installed.build(release=NEW)
    assert any("undo the earlier module" in s for s in _steps(machine, installed))
    install(machine, Request(installed.built))
    assert installed.preferred() == OURS
    assert _modinfo(installed, "nvidia-uvm").release == NEW


def _steps(machine: Machine, scratch: ScratchMachine) -> list[str]:
    return plan_install(machine, Request(scratch.built)).steps


def test_a_module_of_ours_for_a_removed_driver_is_shown_to_people(installed, capsys):
    _removed(installed)
    reboot(installed)
    assert front_end.main(["status", "--root", str(installed.root), "--kernel", KERNEL]) == 1
    shown = capsys.readouterr().out
    assert "NVIDIA driver     none on this machine" in shown
    assert f"pyvattn's module  installed, release {RELEASE}" in shown


def test_a_removed_kernel_leaves_our_module_and_the_way_to_remove_it(installed, capsys):
    for name in ("nvidia.ko", "nvidia-uvm.ko"):
        installed.write(f"lib/modules/{NEW_KERNEL}/{name}", elf_module())
    for path in (installed.modules / "updates/dkms", installed.modules / "modules.dep"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert list(installed.modules.rglob("*.ko")) == [installed.modules / OURS]
    _, status = _status(installed, capsys, NEW_KERNEL)
    (advice,) = [text for text in status["advice"] if "was removed" in text]
    assert f"pyvattn driver uninstall --kernel {KERNEL}" in advice
    uninstall(Machine(installed.root, KERNEL))
    assert not installed.modules.exists()
    assert not any("was removed" in t for t in _status(installed, capsys, NEW_KERNEL)[1]["advice"])


def test_where_dkms_patches_the_upgrade_is_safe_and_the_lost_patch_is_named(
    scratch, machine, capsys, monkeypatch
):
    tree = f"usr/src/nvidia-{RELEASE}"
    scratch.write(f"{tree}/dkms.conf", f'PACKAGE_NAME="nvidia"\nPACKAGE_VERSION="{RELEASE}"\n')
    scratch.write(f"{tree}/nvidia-uvm/uvm.c", "")
    monkeypatch.setattr("driver_patch.install.dkms._patch", lambda _tree: b"the patch")
    dkms_install(machine)
    scratch.install_driver(parm=PATCHED)
    reboot(scratch)
    assert _status(scratch, capsys)[0] == 0
    # dpkg removes what it brought; what it did not, our patch, stays.
    (scratch.root / tree / "dkms.conf").unlink()
    shutil.rmtree(scratch.root / tree / "nvidia-uvm")
    _replaced_in_place(scratch)
    reboot(scratch)
    code, status = _status(scratch, capsys)
    assert code == 0
    assert any(f"DKMS patches release {RELEASE} only" in text for text in status["advice"])
    dkms_uninstall(machine)
    assert Journal(machine, DKMS_JOURNAL).read() is None
    assert not any("DKMS patches" in text for text in _status(scratch, capsys)[1]["advice"])
