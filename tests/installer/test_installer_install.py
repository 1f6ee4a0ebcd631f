# SPDX-License-Identifier: Apache-2.0
"""Install and uninstall in a scratch root: what is checked, what changes, what is put back."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

import pytest
from acts import install, uninstall
from scratch_machine import KERNEL, PATCHED, VERMAGIC, ScratchMachine, elf_module

from driver_patch.install.install import Request, plan_install, plan_uninstall
from driver_patch.install.machine import BadInput, Failed, Machine, Refused, Unavailable

OURS = "updates/pyvattn/nvidia-uvm.ko"
STOCK = "updates/dkms/nvidia-uvm.ko"


def test_install_makes_modprobe_prefer_ours_and_leaves_nvidias(scratch, machine):
    stock = (scratch.modules / STOCK).read_bytes()
    install(machine, Request(scratch.built))
    assert scratch.preferred() == OURS
    assert (scratch.modules / OURS).read_bytes() == scratch.built.read_bytes()
    assert (scratch.modules / OURS).stat().st_mode & 0o777 == 0o644
    assert (scratch.modules / STOCK).read_bytes() == stock


def test_uninstall_leaves_the_root_byte_for_byte_as_it_was(scratch, machine):
    before = scratch.snapshot()
    install(machine, Request(scratch.built))
    assert scratch.snapshot() != before
    done = uninstall(machine)
    assert scratch.snapshot() == before
    assert any("byte for byte as before" in note for note in done)


def test_a_plan_touches_nothing(scratch, machine):
    before = scratch.snapshot()
    plan = plan_install(machine, Request(scratch.built))
    plan_uninstall(machine)
    assert scratch.snapshot() == before
    assert any(str(scratch.modules / OURS) in step for step in plan.steps)


def test_a_file_that_was_at_our_place_comes_back_with_mode_and_time(scratch, machine):
    old = scratch.write(f"lib/modules/{KERNEL}/{OURS}", elf_module(filler=b"somebody's"))
    old.chmod(0o640)
    scratch.depmod()
    before = scratch.snapshot()
    install(machine, Request(scratch.built))
    assert old.read_bytes() == scratch.built.read_bytes()
    uninstall(machine)
    assert scratch.snapshot() == before


def _wrong_kernel(scratch):
    scratch.build(vermagic=VERMAGIC.replace(KERNEL, "6.1.0-17-amd64"))


def _newer_driver(scratch):
    scratch.install_driver(release="590.1")


def _proprietary(scratch):
    scratch.install_driver(license="NVIDIA")


def _versions(scratch):
    scratch.install_driver(versions={"nvUvmInterfaceDupMemory": 1, "kfree": 2})
    scratch.build(versions={"nvUvmInterfaceDupMemory": 9, "kfree": 2, "a_new_import": 3})


def _no_versions(scratch):
    scratch.install_driver(versions={"kfree": 2})


REFUSALS = {
    "built without the patch": (lambda s: s.build(parm=()), "not the patched nvidia-uvm"),
    "built for another kernel": (_wrong_kernel, "6.1.0-17-amd64"),
    "built with other options": (
        lambda s: s.build(vermagic=f"{KERNEL} SMP mod_unload"),
        "another kernel configuration",
    ),
    "built for another machine": (lambda s: s.build(vermagic=f"{VERMAGIC}aarch64"), "aarch64"),
    "release on disk differs": (_newer_driver, "590.1"),
    "release that runs differs": (lambda s: s.run_driver("570.86.15"), "570.86.15"),
    "proprietary on disk": (_proprietary, "proprietary flavour"),
    "proprietary runs": (lambda s: s.run_driver(is_open=False), "proprietary flavour"),
    "symbol versions differ": (_versions, "nvUvmInterfaceDupMemory"),
    "no symbol versions": (_no_versions, "no symbol versions"),
    "a process has the GPU open": (
        lambda s: s.process(4711, "python3", "/dev/nvidia0", "/dev/nvidia-uvm"),
        "python3 (pid 4711: /dev/nvidia-uvm, /dev/nvidia0)",
    ),
    "patched by DKMS already": (
        lambda s: s.install_driver(parm=PATCHED),
        "holds the patch already",
    ),
    "unseen users": (lambda s: s.load_uvm(patched=False, references=3), "in use 3 times"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_say_why_and_touch_nothing(case, scratch, machine):
    spoil, words = REFUSALS[case]
    spoil(scratch)
    before = scratch.snapshot()
    with pytest.raises(Refused) as refused:
        install(machine, Request(scratch.built))
    assert words in str(refused.value)
    assert scratch.snapshot() == before


def test_symbols_that_only_one_of_the_two_imports_do_not_matter(scratch, machine):
    scratch.install_driver(versions={"kfree": 2, "gone": 4})
    scratch.build(versions={"kfree": 2, "new": 3})
    install(machine, Request(scratch.built))
    assert scratch.preferred() == OURS


def test_the_persistence_daemon_does_not_stand_in_the_way(scratch, machine):
    scratch.process(9, "nvidia-persiste", "/dev/nvidiactl", "/dev/nvidia0")
    install(machine, Request(scratch.built))
    assert scratch.preferred() == OURS


def test_use_of_the_gpu_can_be_allowed(scratch, machine):
    scratch.process(4711, "python3", "/dev/nvidia-uvm")
    install(machine, Request(scratch.built, allow_in_use=True))
    assert scratch.preferred() == OURS


def test_without_a_driver_it_says_so(scratch, machine):
    scratch.remove_driver()
    with pytest.raises(Unavailable, match="no NVIDIA driver is installed"):
        install(machine, Request(scratch.built))


def test_distribution_names_of_modules_are_kept(scratch, machine):
    scratch.remove_driver()
    scratch.install_driver("nvidia-current-open")
    install(machine, Request(scratch.built))
    assert scratch.preferred("nvidia-current-open-uvm") == (
        "updates/pyvattn/nvidia-current-open-uvm.ko"
    )


def test_of_several_drivers_the_one_that_fits_is_taken(scratch, machine):
    scratch.install_driver("nvidia-legacy", release="470.1")
    install(machine, Request(scratch.built))
    assert scratch.preferred() == OURS


def test_several_drivers_that_fit_are_refused(scratch, machine):
    scratch.install_driver("nvidia-current-open")
    with pytest.raises(Refused, match="several NVIDIA drivers"):
        install(machine, Request(scratch.built))


def test_installing_again_changes_nothing(scratch, machine):
    install(machine, Request(scratch.built))
    before = scratch.snapshot()
    assert not plan_install(machine, Request(scratch.built)).steps
    install(machine, Request(scratch.built))
    assert scratch.snapshot() == before


def test_a_newer_build_takes_the_place_of_the_older(scratch, machine):
    before = scratch.snapshot()
    install(machine, Request(scratch.built))
    newer = scratch.build(filler=b"newer")
    install(machine, Request(newer))
    assert (scratch.modules / OURS).read_bytes() == newer.read_bytes()
    uninstall(machine)
    assert scratch.snapshot() == before


def test_a_file_that_somebody_changed_is_not_removed(scratch, machine):
    install(machine, Request(scratch.built))
    (scratch.modules / OURS).write_bytes(b"mine now")
    before = scratch.snapshot()
    with pytest.raises(Refused, match="changed since"):
        uninstall(machine)
    assert scratch.snapshot() == before


def test_uninstalling_nothing_is_no_error(scratch, machine):
    before = scratch.snapshot()
    assert not plan_uninstall(machine).steps
    uninstall(machine)
    assert scratch.snapshot() == before


def test_uninstalling_tells_when_nvidias_module_was_replaced_meanwhile(scratch, machine):
    install(machine, Request(scratch.built))
    scratch.write(f"lib/modules/{KERNEL}/{STOCK}", elf_module(filler=b"rebuilt"))
    assert any("replaced since the install" in note for note in uninstall(machine))


def test_when_depmod_fails_everything_is_put_back(scratch, machine):
    # It fails while installing, and works again when that is undone.
    real = (scratch.bin / "depmod").read_text()
    once = '#!/bin/sh\nmv "$0.real" "$0"; echo "depmod: out of luck" >&2; exit 1\n'
    before = scratch.snapshot()
    scratch.tool("depmod.real", real)
    scratch.tool("depmod", once)
    with pytest.raises(Failed, match=r"out of luck.*as it was before"):
        install(machine, Request(scratch.built))
    assert scratch.snapshot() == before


def test_when_undoing_fails_too_the_uninstall_finishes_it(scratch, machine):
    before = scratch.snapshot()
    (scratch.bin / "depmod-fails").touch()
    with pytest.raises(Failed, match="Undoing it failed as well"):
        install(machine, Request(scratch.built))
    assert not (scratch.modules / OURS).exists()
    (scratch.bin / "depmod-fails").unlink()
    uninstall(machine)
    assert scratch.snapshot() == before


def test_another_override_is_named_and_nothing_stays(scratch, machine):
    rival = scratch.write("etc/depmod.d/zz.conf", "override nvidia-uvm * updates/dkms\n")
    before = scratch.snapshot()
    with pytest.raises(Failed, match=str(rival)):
        install(machine, Request(scratch.built))
    assert scratch.snapshot() == before


def test_a_second_install_at_the_same_time_is_refused(scratch, machine):
    descriptor = os.open(scratch.root, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(Refused, match="another install or uninstall is running"):
        install(machine, Request(scratch.built))
    os.close(descriptor)
    install(machine, Request(scratch.built))


def test_links_are_followed_inside_the_root_only(scratch, tmp_path: Path):
    outside = tmp_path / "outside"
    outside.mkdir()
    shutil.rmtree(scratch.root / "etc/depmod.d")
    (scratch.root / "etc/depmod.d").symlink_to("../../outside")
    with pytest.raises(BadInput, match="lies outside"):
        install(Machine(scratch.root, KERNEL), Request(scratch.built))
    assert not list(outside.iterdir())


def test_absolute_links_stay_inside_the_root(scratch):
    (scratch.root / "usr").mkdir()
    (scratch.root / "lib").rename(scratch.root / "usr/lib")
    (scratch.root / "lib").symlink_to("/usr/lib")
    before = scratch.snapshot()
    machine = Machine(scratch.root, KERNEL)
    assert machine.modules == scratch.root / "usr/lib/modules" / KERNEL
    assert before


def test_an_empty_directory_is_staged_for_packaging(scratch: ScratchMachine, tmp_path: Path):
    stage = tmp_path / "stage"
    stage.mkdir()
    machine = Machine(stage, KERNEL)
    plan = plan_install(machine, Request(scratch.built))
    install(machine, Request(scratch.built))
    assert (stage / "lib/modules" / KERNEL / OURS).exists()
    assert any("staged" in note for note in plan.notes)
    uninstall(machine)
    assert not list(stage.iterdir())


def test_staging_still_checks_the_module_itself(scratch: ScratchMachine, tmp_path: Path):
    stage = tmp_path / "stage"
    stage.mkdir()
    scratch.build(parm=())
    with pytest.raises(Refused, match="not the patched"):
        install(Machine(stage, KERNEL), Request(scratch.built))
    assert not list(stage.iterdir())


def test_a_root_with_several_kernels_wants_to_know_which(scratch):
    (scratch.root / "lib/modules/6.12.0-1").mkdir()
    with pytest.raises(BadInput) as refused:
        Machine(scratch.root)
    assert "6.12.0-1" in str(refused.value)
    assert KERNEL in str(refused.value)


@pytest.mark.parametrize("kernel", ["../../etc", "a/b", "-r", "6.1 0"])
def test_kernels_with_hostile_names_are_refused(kernel, scratch):
    with pytest.raises(BadInput, match="not a kernel release"):
        Machine(scratch.root, kernel)


def test_the_copy_in_the_initramfs_is_mentioned(scratch, machine):
    scratch.write(f"boot/initrd.img-{KERNEL}", "image")
    scratch.tool("lsinitramfs", f"#!/bin/sh\necho usr/lib/modules/{KERNEL}/{STOCK}\n")
    scratch.tool("update-initramfs", "#!/bin/sh\n")
    notes = plan_install(machine, Request(scratch.built)).notes
    assert any(f"update-initramfs -u -k {KERNEL}" in note for note in notes)
    scratch.tool("lsinitramfs", "#!/bin/sh\necho bin/sh\n")
    notes = plan_install(machine, Request(scratch.built)).notes
    assert not any("initrd.img" in note for note in notes)


def test_reloading_is_for_this_machine_only(scratch, machine):
    with pytest.raises(Refused, match="--reload"):
        plan_install(machine, Request(scratch.built, reload=True))


def test_the_patch_is_told_by_its_parameter(scratch, machine):
    scratch.build(parm=("uvm_perf_prefetch_enable:uint", *PATCHED))
    assert plan_install(machine, Request(scratch.built)).steps
