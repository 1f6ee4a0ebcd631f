"""Carrying out an install or an uninstall, whole or not at all."""

from __future__ import annotations

from pathlib import Path

from driver_patch.install import checks, signing
from driver_patch.install.depmod import check_preferred, override_line, run_depmod
from driver_patch.install.initramfs import initramfs_note
from driver_patch.install.journal import (
    DKMS_JOURNAL,
    INSTALLED,
    INSTALLING,
    UNINSTALLING,
    Journal,
    Record,
    locked,
)
from driver_patch.install.machine import Machine
from driver_patch.install.modules import preferred_module, read_module
from driver_patch.install.plan import (
    RELOAD_COMMANDS,
    InstallPlan,
    Plan,
    Request,
    describe_users,
    is_staging,
    our_files,
    plan_install,
)
from driver_patch.install.processes import gpu_users
from driver_patch.install.reload import reload_uvm
from pyvattn.errors import ConfigError, InstallError


def install(machine: Machine, request: Request) -> InstallPlan:
    """Install the patched nvidia-uvm and return the plan that was carried out.

    Raises:
        InstallRefused: a check failed; nothing was touched.
        DriverUnavailable: no NVIDIA driver is installed for the kernel.
        InstallError: a step failed; everything is as before, or the message says what is not.
    """
    with locked(machine):
        plan = plan_install(machine, request)
        plan.raise_if_refused()
        if not plan.nothing_to_do:
            journal = Journal(machine)
            files = _contents(machine, plan)
            if plan.record is not None:
                _undo(machine, journal, plan.record)
            _put(machine, journal, plan, files)
        if request.reload:
            _reload_or_undo(machine)
    return plan


def plan_uninstall(machine: Machine, allow_in_use: bool = False, reload: bool = False) -> Plan:
    """Work out an uninstall and touch nothing."""
    journal = Journal(machine)
    record = journal.read()
    plan = Plan(f"Remove the patched nvidia-uvm for kernel {machine.kernel}")
    if record is None:
        plan.nothing_to_do = True
        plan.notes.append(f"pyvattn has installed no module for kernel {machine.kernel}.")
        if Journal(machine, DKMS_JOURNAL).read() is not None:
            plan.notes.append("DKMS builds the patch: --dkms (make DKMS=1) takes that back.")
        return plan
    plan.facts.append(("installed", f"release {record.about.get('release', '?')}"))
    if record.state != INSTALLED:
        plan.facts.append(("state", f"interrupted while {record.state}; this finishes the undoing"))
    for entry in record.entries:
        verb = "put back" if entry.before else "remove"
        plan.steps.append(f"{verb} {entry.path}")
    plan.refusals += [
        f"{path} was changed since pyvattn wrote it: look at it, move it away, and repeat."
        for path in journal.foreign_changes(record)
    ]
    plan.refusals += checks.check_root(machine)
    if not is_staging(machine, record):
        plan.steps.append("run depmod")
        if record.state == INSTALLED and machine.is_running_kernel:
            users = gpu_users(machine)
            plan.facts.append(("in use by", describe_users(users)))
            if not allow_in_use or reload:
                plan.refusals += checks.check_users(machine, users)
        plan.notes += [note for note in (initramfs_note(machine),) if note]
    if reload:
        plan.steps.append(f"reload: {RELOAD_COMMANDS}")
        if not machine.is_live or not machine.is_running_kernel:
            plan.refusals.append("--reload is for the running kernel of this machine only.")
    elif (loaded := machine.loaded_uvm()) is not None and loaded.is_patched:
        plan.notes.append(
            "The patched module stays loaded until the next boot, or until you run "
            f"`{RELOAD_COMMANDS}` as root once no process uses the GPU."
        )
    return plan


def uninstall(machine: Machine, allow_in_use: bool = False, reload: bool = False) -> Plan:
    """Put everything back as it was before :func:`install`; may be repeated after a failure.

    Raises:
        InstallRefused: a check failed; nothing was touched.
        InstallError: a step failed; running it again goes on where it stopped.
    """
    with locked(machine):
        plan = plan_uninstall(machine, allow_in_use, reload)
        plan.raise_if_refused()
        journal = Journal(machine)
        record = journal.read()
        try:
            if record is None:
                journal.sweep()
                return plan
            journal.mark(UNINSTALLING)
            _undo(machine, journal, record)
        except OSError as error:
            raise InstallError(f"{error}. Repeat the uninstall; it goes on from here.") from error
        if not is_staging(machine, record):
            plan.notes.append(_what_is_used_now(machine, record))
        if reload:
            reload_uvm(machine, patched=False)
    return plan


def _contents(machine: Machine, plan: InstallPlan) -> dict[Path, bytes]:
    assert plan.module is not None
    data = plan.module.path.read_bytes()
    if plan.signing is not None:
        data = signing.sign(machine, plan.signing.signer, plan.signing.pair, data)
    target, config = our_files(machine, plan.stem)
    return {target: data, config: override_line(plan.stem, machine.kernel).encode()}


def _about(plan: InstallPlan) -> dict[str, str]:
    assert plan.module is not None
    about = {"release": plan.module.release, "module": plan.module.sha256, "stem": plan.stem}
    if plan.staged:
        about["staged"] = "yes"
    if plan.stock is not None:
        about["stock_path"] = str(plan.stock.uvm.path)
        about["stock_sha256"] = plan.stock.uvm.sha256
    return about


def _put(machine: Machine, journal: Journal, plan: InstallPlan, files: dict[Path, bytes]) -> None:
    for path in files:
        _stay_inside(machine, path)
    try:
        journal.sweep()
        journal.begin(files, _about(plan))
        journal.put(files)
        if not plan.staged:
            run_depmod(machine)
            check_preferred(machine, next(iter(files)))
        journal.mark(INSTALLED)
    except BaseException as error:
        _roll_back(machine, journal, error)
        if isinstance(error, (OSError, InstallError)):
            raise InstallError(f"{error}. Everything is as it was before.") from error
        raise


def _stay_inside(machine: Machine, path: Path) -> None:
    if not path.parent.resolve().is_relative_to(machine.root):
        raise ConfigError(f"{path} lies outside {machine.root}, behind a link: not written to.")


def _roll_back(machine: Machine, journal: Journal, cause: BaseException) -> None:
    try:
        record = journal.read()
        if record is not None:
            _undo(machine, journal, record)
    except (OSError, InstallError) as error:
        raise InstallError(
            f"{cause}. Undoing it failed as well: {error}. NVIDIA's module was not touched; run "
            "the uninstall when the cause is removed, it goes on from here."
        ) from cause


def _undo(machine: Machine, journal: Journal, record: Record) -> None:
    journal.put_back(record)
    if not is_staging(machine, record):
        run_depmod(machine)
    journal.forget(record)


def _what_is_used_now(machine: Machine, record: Record) -> str:
    used = preferred_module(machine.modules, record.about.get("stem", "nvidia-uvm"))
    if used is None or not used.is_file():
        return "No nvidia-uvm of NVIDIA's is installed for this kernel any more."
    same = read_module(used).sha256 == record.about.get("stock_sha256")
    state = "byte for byte as before the install" if same else "replaced since the install"
    return f"modprobe now takes {used} ({state})."


def _reload_or_undo(machine: Machine) -> None:
    try:
        reload_uvm(machine, patched=True)
    except InstallError as error:
        journal = Journal(machine)
        record = journal.read()
        if record is not None:
            journal.mark(INSTALLING)
            _undo(machine, journal, record)
        try:
            reload_uvm(machine, patched=False)
        except InstallError as second:
            raise InstallError(
                f"{error} The files are as before, but NVIDIA's module could not be loaded "
                f"either: {second}"
            ) from error
        raise InstallError(f"{error} NVIDIA's module is installed and loaded again.") from error
