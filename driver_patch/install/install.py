# SPDX-License-Identifier: Apache-2.0
"""Installing and removing the module: the plan first, then whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from driver_patch.install import kmod, nvidia
from driver_patch.install.journal import DKMS_JOURNAL, INSTALLED, Journal, Record, locked
from driver_patch.install.kmod import OUR_FOLDER, RELOAD_COMMANDS, ModuleFile
from driver_patch.install.machine import Failed, Machine, Refused
from driver_patch.install.signing import Signer, find_signer, why_signed


@dataclass(frozen=True)
class Request:
    """What was asked for. ``module`` is the built nvidia-uvm.ko."""

    module: Path
    key: Path | None = None
    certificate: Path | None = None
    trust_key: bool = False
    allow_in_use: bool = False
    reload: bool = False


@dataclass
class Plan:
    """What would be done, for people to read. Without steps there is nothing to do.

    ``carry_out`` does it and returns what is to be said afterwards.
    """

    title: str
    carry_out: Callable[[], Sequence[str] | None] = tuple
    facts: list[tuple[str, str]] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def carry_out(machine: Machine, make_plan: Callable[[], Plan]) -> Sequence[str]:
    """Make the plan anew with everybody else kept out, and do what it says.

    Raises:
        Refused: a check failed; nothing was touched.
        Failed: a step failed; the message says what state that left.
    """
    with locked(machine):
        plan = make_plan()
        if plan.steps and (denied := machine.denied()):
            raise Refused(denied)
        return plan.carry_out() or ()


def plan_install(machine: Machine, request: Request) -> Plan:
    """Look at everything that matters to an install and touch nothing.

    Raises:
        Refused: something stands in the way; says what, and the remedy.
        Unavailable: no NVIDIA driver is installed for the kernel, or kmod is not.
        BadInput: ``request`` names a file that is missing or is not what it should be.
    """
    module = ModuleFile(request.module)
    nvidia.require_ours(machine, module)
    what = f"the patched nvidia-uvm of release {module.release} for kernel {machine.kernel}"
    plan = Plan(f"Install {what}", facts=[("patched module", f"{module.path} ({module.release})")])
    journal = Journal(machine)
    record = journal.read()
    about = {"release": module.release, "module": module.sha256, "stem": "nvidia-uvm"}
    if _is_staging(machine, record):
        plan.notes.append(
            f"{machine.root} holds no kernel {machine.kernel}: files are staged there for "
            "packaging; the driver of the target is not checked and depmod is not run."
        )
    else:
        about["depmod"] = "yes"
        _look_at_driver(machine, request, module, plan, about)
    plan.facts.append(("signature", why_signed(machine) or "not asked for by this kernel"))
    signer = find_signer(machine, module, request.key, request.certificate, request.trust_key)
    if _is_installed(journal, record, module):
        plan.notes = ["exactly this module is installed already."]
    else:
        plan.steps += _install_steps(machine, record, signer, about)
    _plan_reload(machine, plan, request.reload)
    plan.carry_out = partial(_install, machine, request, module, signer, about)
    return plan


def _look_at_driver(
    machine: Machine, request: Request, module: ModuleFile, plan: Plan, about: dict[str, str]
) -> None:
    stock = nvidia.find_stock(machine, module.release)
    nvidia.require_fit(machine, module, stock)
    about.update(stem=stock.uvm.stem, stock_sha256=stock.uvm.sha256)
    plan.facts += [
        ("running driver", str(machine.running_driver() or "none is loaded")),
        ("NVIDIA's module", f"{stock.uvm.path} ({stock.release}); it stays there"),
    ]
    _require_idle(machine, plan, request.allow_in_use and not request.reload)
    if not request.reload:
        plan.notes.append(
            f"It takes effect when the module is next loaded: at boot, or with `{RELOAD_COMMANDS}` "
            "as root once no process uses the GPU. Nothing is reloaded now."
        )
    plan.notes.append(
        "DKMS builds this driver here: with --dkms (make DKMS=1) it builds the patch as well, for "
        "later kernels too, and leaves it out once the driver is upgraded."
        if machine.dkms_knows(stock.release)
        else "Before you upgrade the NVIDIA driver, uninstall; afterwards build and install again. "
        "A new kernel starts with NVIDIA's module until you do."
    )
    plan.notes += filter(None, [kmod.initramfs_note(machine)])


def _install_steps(
    machine: Machine, record: Record | None, signer: Signer | None, about: dict[str, str]
) -> list[str]:
    target, config = our_files(machine, about["stem"])
    return [
        *([f"undo {_earlier(record)}"] if record else []),
        "write down what will be changed, under /var/lib/pyvattn/driver",
        *([f"sign a copy of the module with {signer.key}"] if signer else []),
        f"write {target}",
        f"write {config} (makes depmod prefer ours; nothing of NVIDIA's is changed)",
        *([f"run depmod and check that {about['stem']} is now ours"] if "depmod" in about else []),
    ]


def _install(
    machine: Machine,
    request: Request,
    module: ModuleFile,
    signer: Signer | None,
    about: dict[str, str],
) -> list[str]:
    journal = Journal(machine)
    record = journal.read()
    if not _is_installed(journal, record, module):
        target, config = our_files(machine, about["stem"])
        data = module.path.read_bytes()
        override = kmod.override_line(about["stem"], machine.kernel)
        files = {target: signer.sign(data) if signer else data, config: override.encode()}
        if record is not None:
            journal.undo()
        check = partial(kmod.require_preferred, machine, target)
        journal.apply(files, about, check if "depmod" in about else None)
    if request.reload:
        _reload_or_undo(machine, journal)
    return []


def plan_uninstall(machine: Machine, allow_in_use: bool = False, reload: bool = False) -> Plan:
    """Work out how everything is put back as it was before an install, and touch nothing.

    Raises:
        Refused: something stands in the way; says what, and the remedy.
    """
    journal = Journal(machine)
    plan, record = plan_undo(f"Remove the patched nvidia-uvm for kernel {machine.kernel}", journal)
    if record is None:
        plan.notes.append(f"pyvattn has installed no module for kernel {machine.kernel}.")
        if Journal(machine, DKMS_JOURNAL).read() is not None:
            plan.notes.append("DKMS builds the patch: --dkms (make DKMS=1) takes that back.")
        return plan
    staged = _is_staging(machine, record)
    plan.facts.append(("installed", _earlier(record)))
    if not staged:
        plan.steps.append("run depmod")
        if record.state == INSTALLED:
            _require_idle(machine, plan, allow_in_use and not reload)
        plan.notes += filter(None, [kmod.initramfs_note(machine)])
    loaded = machine.loaded_uvm()
    if not reload and loaded is not None and loaded.is_patched:
        plan.notes.append(
            "The patched module stays loaded until the next boot, or until you run "
            f"`{RELOAD_COMMANDS}` as root once no process uses the GPU."
        )
    _plan_reload(machine, plan, reload)

    def uninstall() -> list[str]:
        journal.undo()
        if reload:
            kmod.reload_uvm(machine, patched=False)
        return [] if staged else [_what_is_used_now(machine, record)]

    plan.carry_out = uninstall
    return plan


def plan_undo(title: str, journal: Journal) -> tuple[Plan, Record | None]:
    """Begin a plan that puts back what ``journal`` has changed, and return what it says."""
    plan, record = Plan(title, journal.sweep), journal.read()
    if record is not None:
        journal.require_ours(record)
        plan.carry_out = journal.undo
        plan.steps += [f"{'put back' if e.before else 'remove'} {e.path}" for e in record.entries]
    return plan, record


def our_files(machine: Machine, stem: str) -> tuple[Path, Path]:
    """Return where our module and our line for depmod go."""
    return (
        machine.modules / OUR_FOLDER / f"{stem}.ko",
        machine.path("etc/depmod.d") / f"pyvattn-{machine.kernel}.conf",
    )


def _is_staging(machine: Machine, record: Record | None) -> bool:
    """Whether the root is a directory for packaging rather than a system."""
    if record is not None:  # Our own files may have made it look like a system.
        return "depmod" not in record.about
    return not machine.is_live and not machine.modules.is_dir()


def _earlier(record: Record) -> str:
    interrupted = "" if record.state == INSTALLED else f", interrupted while {record.state}"
    return f"the earlier module (release {record.about.get('release', '?')}{interrupted})"


def _is_installed(journal: Journal, record: Record | None, module: ModuleFile) -> bool:
    return (
        record is not None
        and record.state == INSTALLED
        and record.about.get("module") == module.sha256
        and journal.is_intact(record)
    )


def _require_idle(machine: Machine, plan: Plan, allowed: bool) -> None:
    if machine.is_running_kernel:
        plan.facts.append(("in use by", str(machine.gpu_users())))
        if not allowed:
            machine.require_idle()


def _plan_reload(machine: Machine, plan: Plan, reload: bool) -> None:
    if not reload:
        return
    if not (machine.is_live and machine.is_running_kernel):
        raise Refused("--reload is for the running kernel of this machine only: leave it out.")
    plan.steps.append(f"reload: {RELOAD_COMMANDS}")


def _what_is_used_now(machine: Machine, record: Record) -> str:
    used = kmod.preferred(machine, record.about.get("stem", "nvidia-uvm"))
    if used is None or not used.is_file():
        return "No nvidia-uvm of NVIDIA's is installed for this kernel any more."
    same = ModuleFile(used).sha256 == record.about.get("stock_sha256")
    state = "byte for byte as before the install" if same else "replaced since the install"
    return f"modprobe now takes {used} ({state})."


def _reload_or_undo(machine: Machine, journal: Journal) -> None:
    try:
        kmod.reload_uvm(machine, patched=True)
    except Failed as error:
        journal.undo()
        try:
            kmod.reload_uvm(machine, patched=False)
        except Failed as second:
            raise Failed(
                f"{error} The files are as before, but NVIDIA's module could not be loaded "
                f"either: {second}"
            ) from error
        raise Failed(f"{error} NVIDIA's module is installed and loaded again.") from error
