# SPDX-License-Identifier: Apache-2.0
"""The DKMS configuration: one line and one patch file that DKMS applies to NVIDIA's source."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from acts import dkms_install, dkms_uninstall
from scratch_machine import KERNEL, RELEASE, ScratchMachine

from driver_patch.install import dkms
from driver_patch.install.install import plan_uninstall
from driver_patch.install.machine import Machine, Refused, Unavailable

CHECKOUT = Path(__file__).resolve().parents[2]
TREE = f"usr/src/nvidia-{RELEASE}"
CONFIG = f"etc/dkms/nvidia-{RELEASE}.conf"
DKMS_CONF = f"""PACKAGE_NAME="nvidia"
PACKAGE_VERSION="{RELEASE}"
BUILT_MODULE_NAME[0]="nvidia"
PATCH[0]="of-the-distribution.patch"
"""


def _hooks():
    spec = importlib.util.spec_from_file_location(
        "driver_hooks", CHECKOUT / "driver_patch/hooks/hooks.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.HOOKS


@pytest.fixture(params=["", "kernel-open/"], ids=["flat", "kernel-open"])
def layout(request: pytest.FixtureRequest) -> str:
    """Where nvidia-uvm/ lies in the package: at its top, or as in NVIDIA's repository."""
    return request.param


@pytest.fixture
def tree(scratch: ScratchMachine, layout: str) -> Path:
    """A source tree that has just the lines that the hooks look for, once each."""
    files: dict[str, list[str]] = {"nvidia-uvm/uvm.c": []}
    for hook in _hooks():
        lines = files.setdefault(hook.file, [])
        if hook.anchor not in lines:
            lines += ["/* something of NVIDIA's */", hook.anchor]
    files["Kbuild"] = [f'EXTRA_CFLAGS += -DNV_VERSION_STRING=\\"{RELEASE}\\"']
    files["nvidia/nv.c"] = ['MODULE_LICENSE("Dual MIT/GPL");']
    scratch.write(f"{TREE}/dkms.conf", DKMS_CONF)
    for name, lines in files.items():
        scratch.write(f"{TREE}/{layout}{name}", "\n".join(lines) + "\n")
    # A last line without its newline must survive the patch as well.
    header = scratch.root / TREE / f"{layout}nvidia-uvm/uvm_va_range.h"
    header.write_text(f"{header.read_text()}#endif")
    return scratch.root / TREE


def _contents(tree: Path) -> dict[str, bytes]:
    return {str(p.relative_to(tree)): p.read_bytes() for p in tree.rglob("*") if p.is_file()}


def test_dkms_patches_the_source_as_driver_patch_would(tree, layout, machine, tmp_path):
    dkms_install(machine)
    built, expected = tmp_path / "built", tmp_path / "expected"
    shutil.copytree(tree, built)
    shutil.copytree(tree, expected)
    patch = next((tree / "patches").iterdir())
    subprocess.run(["patch", "-p1", "-i", patch], cwd=built, check=True, capture_output=True)
    script = CHECKOUT / "driver_patch/scripts/driver_patch.py"
    subprocess.run([sys.executable, script, "apply", expected], check=True, capture_output=True)
    assert _contents(built) == _contents(expected)
    assert b"uvm_vattn" in (built / layout / "nvidia-uvm/uvm.c").read_bytes()


def test_dkms_finds_our_patch_after_the_distributions(tree, machine):
    dkms_install(machine)
    config = machine.root / CONFIG
    script = f'. "{tree}/dkms.conf"; . "{config}"; echo "${{PATCH[@]}}"'
    done = subprocess.run(["bash", "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["of-the-distribution.patch", f"pyvattn-{RELEASE}.patch"]


@pytest.mark.usefixtures("tree")
def test_uninstall_leaves_the_root_byte_for_byte_as_it_was(scratch, machine):
    scratch.write(CONFIG, "# the administrator's\n").chmod(0o600)
    before = scratch.snapshot()
    dkms_install(machine)
    assert (scratch.root / CONFIG).read_text().startswith("# the administrator's\n")
    dkms_uninstall(machine)
    assert scratch.snapshot() == before


@pytest.mark.usefixtures("tree")
def test_a_plan_touches_nothing(scratch, machine):
    before = scratch.snapshot()
    plan = dkms.plan_install(machine)
    assert scratch.snapshot() == before
    assert any(f"dkms build nvidia/{RELEASE} -k {KERNEL}" in note for note in plan.notes)


@pytest.mark.usefixtures("tree")
def test_the_proprietary_source_is_refused(scratch, layout, machine):
    scratch.write(f"{TREE}/{layout}nvidia/nv.c", 'MODULE_LICENSE("NVIDIA");\n')
    with pytest.raises(Refused, match="proprietary flavour"):
        dkms_install(machine)


@pytest.mark.usefixtures("tree")
def test_a_source_that_the_patch_does_not_fit_is_refused(scratch, layout, machine):
    scratch.write(f"{TREE}/{layout}nvidia-uvm/uvm.c", "somebody's own\n")
    before = scratch.snapshot()
    with pytest.raises(Refused, match=r"uvm\.c.*instead of once"):
        dkms_install(machine)
    assert scratch.snapshot() == before


def test_without_a_dkms_package_it_says_so(machine: Machine):
    with pytest.raises(Unavailable, match="leave --dkms out"):
        dkms_install(machine)
    (machine.root / "var/lib/dkms/nvidia").mkdir(parents=True)
    with pytest.raises(Unavailable, match="install the open flavour"):
        dkms_install(machine)


@pytest.mark.usefixtures("tree")
def test_the_plain_uninstall_points_to_it(machine):
    dkms_install(machine)
    assert any("--dkms" in note for note in plan_uninstall(machine).notes)


@pytest.mark.usefixtures("tree")
def test_a_second_time_is_refused(machine):
    dkms_install(machine)
    with pytest.raises(Refused, match="there already"):
        dkms_install(machine)
