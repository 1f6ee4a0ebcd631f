"""What an install would do, why it may be refused, and what to know: worked out, not done."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from driver_patch.install import checks, signing
from driver_patch.install.initramfs import initramfs_note
from driver_patch.install.journal import INSTALLED, Journal, Record
from driver_patch.install.machine import Machine
from driver_patch.install.modules import ModuleFile, read_module
from driver_patch.install.processes import GpuUsers, gpu_users
from driver_patch.install.stock import OUR_FOLDER, StockModules, find_stock
from pyvattn.errors import ConfigError, DriverUnavailable, InstallRefused

RELOAD_COMMANDS = "rmmod nvidia_uvm && modprobe nvidia-uvm"


@dataclass(frozen=True)
class Request:
    """What was asked for. ``module`` is the built nvidia-uvm.ko."""

    module: Path
    key: Path | None = None
    certificate: Path | None = None
    trust_key: bool = False
    allow_in_use: bool = False
    reload: bool = False


@dataclass(frozen=True)
class Signing:
    """With what the module will be signed."""

    signer: str
    pair: signing.KeyPair


@dataclass
class Plan:
    """A plan for people to read and for :mod:`driver_patch.install.install` to carry out."""

    title: str
    facts: list[tuple[str, str]] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    #: A refusal because something is not installed here at all.
    unavailable: bool = False
    nothing_to_do: bool = False

    def raise_if_refused(self) -> None:
        """Raise DriverUnavailable or InstallRefused with every reason."""
        if not self.refusals:
            return
        text = "Nothing was changed:\n" + "\n".join(f"- {reason}" for reason in self.refusals)
        if self.unavailable:
            raise DriverUnavailable(text)
        raise InstallRefused(text, reasons=tuple(self.refusals))


@dataclass
class InstallPlan(Plan):
    """The plan of an install; ``stock`` is None where files are only staged for packaging."""

    module: ModuleFile | None = None
    stock: StockModules | None = None
    signing: Signing | None = None
    record: Record | None = None
    staged: bool = False

    @property
    def stem(self) -> str:
        """The name that our module takes: that of the module that it stands in for."""
        return self.stock.uvm.stem if self.stock else "nvidia-uvm"


def plan_install(machine: Machine, request: Request) -> InstallPlan:
    """Look at everything that matters to an install and touch nothing.

    Raises:
        ConfigError: ``request`` names a file that is missing or is not what it should be.
    """
    module = read_module(request.module)
    plan = InstallPlan(
        f"Install the patched nvidia-uvm of release {module.release or '(unknown)'} "
        f"for kernel {machine.kernel}",
        module=module,
        record=Journal(machine).read(),
    )
    plan.staged = is_staging(machine, plan.record)
    plan.facts.append(("patched module", f"{module.path} ({module.release})"))
    plan.refusals += checks.check_module(machine, module)
    if plan.staged:
        plan.notes.append(
            f"{machine.root} holds no kernel {machine.kernel}: files are staged there for "
            "packaging; the driver of the target is not checked and depmod is not run."
        )
    else:
        _look_at_driver(machine, module, plan)
        _look_at_users(machine, request, plan)
    plan.refusals += checks.check_root(machine)
    _plan_signing(machine, request, plan)
    _plan_steps(machine, request, plan)
    return plan


def is_staging(machine: Machine, record: Record | None) -> bool:
    """Whether the root is a directory for packaging rather than a system."""
    if record is not None:  # Our own files may have made it look like a system.
        return record.about.get("staged") == "yes"
    return not machine.is_live and not machine.modules.is_dir()


def our_files(machine: Machine, stem: str) -> tuple[Path, Path]:
    """Return where our module and our line for depmod go."""
    return (
        machine.modules / OUR_FOLDER / f"{stem}.ko",
        machine.path("etc/depmod.d") / f"pyvattn-{machine.kernel}.conf",
    )


def _look_at_driver(machine: Machine, module: ModuleFile, plan: InstallPlan) -> None:
    running = machine.running_driver()
    text = f"{running.release}, {running.flavour} kernel modules" if running else "none is loaded"
    plan.facts.append(("running driver", text))
    try:
        plan.stock = find_stock(machine, module.release)
    except (DriverUnavailable, InstallRefused, ConfigError) as error:
        plan.refusals.append(str(error))
        plan.unavailable = isinstance(error, DriverUnavailable)
        return
    uvm = plan.stock.uvm
    plan.facts.append(("NVIDIA's module", f"{uvm.path} ({plan.stock.release}); it stays there"))
    plan.refusals += checks.check_stock(module, plan.stock)
    plan.refusals += checks.check_running(machine, module)


def _look_at_users(machine: Machine, request: Request, plan: Plan) -> None:
    if not machine.is_running_kernel:
        return
    users = gpu_users(machine)
    plan.facts.append(("in use by", describe_users(users)))
    problems = checks.check_users(machine, users)
    if request.allow_in_use and not request.reload:
        return
    plan.refusals += problems
    if problems and request.reload and request.allow_in_use:
        plan.refusals.append("--reload cannot be had while the module is in use.")


def describe_users(users: GpuUsers) -> str:
    """Say in one line who uses the GPU, and what could not be seen."""
    text = "; ".join(map(str, users.users)) or "nobody"
    if users.hidden:
        hint = "" if os.geteuid() == 0 else "; root can"
        text += f" (processes that could not be looked into: {users.hidden}{hint})"
    return text


def _plan_signing(machine: Machine, request: Request, plan: InstallPlan) -> None:
    reason = signing.why_signed(machine)
    wanted = reason or request.key or request.certificate
    plan.facts.append(("signature", reason or "not asked for by this kernel"))
    if not wanted:
        return
    if plan.module is not None and plan.module.elf.signed and request.key is None:
        plan.notes.append(
            f"{plan.module.path} is signed already; whether its key is trusted is not checked."
        )
        return
    pair = signing.find_key(machine, request.key, request.certificate)
    if pair is None:
        plan.refusals.append(_no_key(reason))
        return
    signer = signing.find_signer(machine)
    if signer is None:
        plan.refusals.append(
            f"the module must be signed, and there is no sign-file of kernel {machine.kernel}: "
            "install its headers (linux-headers-… or kernel-devel-…)."
        )
        return
    plan.refusals += _enrolment(machine, request, pair)
    plan.signing = Signing(signer, pair)


def _no_key(reason: str) -> str:
    return (
        f"{reason}, so the module must be signed, and there is no machine-owner key. Make one and "
        "enrol it:\n"
        "    openssl req -new -x509 -newkey rsa:2048 -nodes -days 36500 \\\n"
        "        -subj '/CN=Module signing/' -outform DER -keyout MOK.priv -out MOK.der\n"
        "    mokutil --import MOK.der   # asks for a password; reboot, choose Enroll MOK, type it\n"
        "  then install with --key MOK.priv --cert MOK.der (make KEY=… CERT=…)."
    )


def _enrolment(machine: Machine, request: Request, pair: signing.KeyPair) -> list[str]:
    if request.trust_key or signing.is_enrolled(machine, pair) is not False:
        return []
    return [
        f"the key of {pair.certificate} is not enrolled, so the kernel would not load the module: "
        f"run `mokutil --import {pair.certificate}`, reboot, choose Enroll MOK, and repeat. If the "
        "kernel itself was built with this key, say so with --trust-key (make TRUST_KEY=1)."
    ]


def _plan_steps(machine: Machine, request: Request, plan: InstallPlan) -> None:
    target, config = our_files(machine, plan.stem)
    journal = Journal(machine)
    if plan.record is not None:
        assert plan.module is not None
        if _is_installed(journal, plan.record, plan.module):
            plan.nothing_to_do = True
            plan.notes.append("exactly this module is installed already.")
            return
        earlier = "earlier pyvattn module" if plan.record.state == INSTALLED else "interrupted run"
        plan.steps.append(f"undo the {earlier} (release {plan.record.about.get('release', '?')})")
    plan.steps.append("write down what will be changed, under /var/lib/pyvattn/driver")
    if plan.signing is not None:
        plan.steps.append(f"sign a copy of the module with {plan.signing.pair.key}")
    plan.steps.append(f"write {target}")
    plan.steps.append(f"write {config} (makes depmod prefer ours; nothing of NVIDIA's is changed)")
    if not plan.staged:
        plan.steps.append(f"run depmod and check that {plan.stem} is now ours")
        plan.notes += _effect(machine, request)
    if request.reload:
        plan.steps.append(f"reload: {RELOAD_COMMANDS}")
        if not machine.is_live or not machine.is_running_kernel:
            plan.refusals.append("--reload is for the running kernel of this machine only.")


def _is_installed(journal: Journal, record: Record, module: ModuleFile) -> bool:
    return (
        record.state == INSTALLED
        and record.about.get("module") == module.sha256
        and journal.is_intact(record)
    )


def _effect(machine: Machine, request: Request) -> list[str]:
    notes = []
    if not request.reload:
        notes.append(
            f"It takes effect when the module is next loaded: at boot, or with `{RELOAD_COMMANDS}` "
            "as root once no process uses the GPU. Nothing is reloaded now."
        )
    notes.append(
        "Before you upgrade the NVIDIA driver, uninstall; afterwards build and install again. "
        "A new kernel starts with NVIDIA's module until you do."
    )
    if note := initramfs_note(machine):
        notes.append(note)
    return notes
