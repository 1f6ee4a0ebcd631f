# SPDX-License-Identifier: Apache-2.0
"""The command line: ``make install`` and its kin call it, and ``pyvattn driver`` does."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from driver_patch.install import dkms
from driver_patch.install.install import Plan, Request, carry_out, plan_install, plan_uninstall
from driver_patch.install.machine import BadInput, Failed, InstallerError, Machine, Refused
from driver_patch.install.sources import build, find_built
from driver_patch.install.status import read_status

Option = Callable[..., object]

_EPILOG = (
    "Exit codes: 0 done; 1 refused, or something needs attention; 2 bad usage or input; 3 no "
    "NVIDIA driver, kmod or source here; 4 a step failed."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.run(options)
        return code
    except (InstallerError, OSError) as error:
        kind = "Refused" if isinstance(error, Refused) else "Error"
        print(f"{kind}: {error}", file=sys.stderr)
        if options.run in (_install, _uninstall) and not isinstance(error, (Failed, OSError)):
            print("Nothing was changed.", file=sys.stderr)
        return getattr(error, "exit_code", BadInput.exit_code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pyvattn driver",
        description="Look at, build, install and remove the patched nvidia-uvm. It gives pages of "
        "64K to 256K to NVIDIA's open kernel modules. NVIDIA's own module stays where it is, and "
        "nothing is reloaded unless you ask for it.",
        epilog=_EPILOG,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Callable[[argparse.Namespace], int], text: str) -> Option:
        command = commands.add_parser(name, help=text, description=text, epilog=_EPILOG)
        command.set_defaults(run=run, dry_run=name == "plan")
        command.add_argument("--kernel", help="kernel release [the running one]")
        command.add_argument("--root", type=Path, default="/", help="root directory to work in [/]")
        return command.add_argument

    option = add("status", _status, "Say what is installed and loaded, and what is next.")
    option("--json", action="store_true", help="print JSON and nothing else")

    option = add("build", _build, "Patch a copy of NVIDIA's source and build nvidia-uvm.ko.")
    option("--source", type=Path, help="NVIDIA's source tree [found]")
    option("--release", default="", help="release of the driver [the installed one]")

    for name, run, text in (
        ("plan", _install, "Show what an install would do; touch nothing."),
        ("install", _install, "Show the plan, ask, and install the patched module (root)."),
        ("uninstall", _uninstall, "Show the plan, ask, and put everything back (root)."),
    ):
        option = add(name, run, text)
        option("--allow-in-use", action="store_true", help="even if processes use the GPU")
        option("--reload", action="store_true", help="reload nvidia-uvm as well")
        option("--dkms", action="store_true", help="let NVIDIA's DKMS package build the patch")
        if name != "plan":
            option("--dry-run", action="store_true", help="print the plan and stop")
            option("--yes", action="store_true", help="do not ask")
        if name != "uninstall":
            option("--module", type=Path, help="the built nvidia-uvm.ko [found where it is built]")
            option("--key", type=Path, help="machine-owner key that signs the module")
            option("--cert", type=Path, help="its certificate, DER or PEM")
            option("--trust-key", action="store_true", help="do not ask that the key is enrolled")
    return parser


def _status(options: argparse.Namespace) -> int:
    status = read_status(Machine(options.root, options.kernel))
    if options.json:
        print(json.dumps(status.as_dict(), indent=2))
    else:
        print("\n".join(_rows(status.rows())))
        _print_section("Needs attention:", status.problems)
        _print_section("Next:", status.advice)
    if status.problems:
        return Refused.exit_code
    return 0 if status.has_driver else 3


def _build(options: argparse.Namespace) -> int:
    machine = Machine(options.root, options.kernel)
    print(build(machine, options.source, options.release))
    return 0


def _install(options: argparse.Namespace) -> int:
    machine = Machine(options.root, options.kernel)
    if options.dkms:
        return _do(machine, partial(dkms.plan_install, machine), options)
    request = Request(
        module=options.module or find_built(machine),
        key=options.key,
        certificate=options.cert,
        trust_key=options.trust_key,
        allow_in_use=options.allow_in_use,
        reload=options.reload,
    )
    return _do(machine, partial(plan_install, machine, request), options)


def _uninstall(options: argparse.Namespace) -> int:
    machine = Machine(options.root, options.kernel)
    if options.dkms:
        return _do(machine, partial(dkms.plan_uninstall, machine), options)
    make = partial(plan_uninstall, machine, options.allow_in_use, options.reload)
    return _do(machine, make, options)


def _do(machine: Machine, make_plan: Callable[[], Plan], options: argparse.Namespace) -> int:
    plan = make_plan()
    print("\n".join([plan.title, *_rows(plan.facts)]))
    steps = [f"  {n}. {step}" for n, step in enumerate(plan.steps, 1)]
    print("\n".join(["", "Steps:", *steps] if steps else ["", "Nothing to do."]))
    denied = machine.denied()
    _print_section("Note:", plan.notes + ([denied] if denied and options.dry_run else []))
    if options.dry_run:
        return 0
    if steps and denied:
        raise Refused(denied)
    if steps and not options.yes and not _agreed():
        print("Nothing was changed.")
        return Refused.exit_code
    sys.stdout.flush()
    notes = [] if denied else carry_out(machine, make_plan)
    if steps:
        print("\n".join(["", "Done.", *(f"  - {note}" for note in notes)]))
    return 0


def _agreed() -> bool:
    if not sys.stdin.isatty():
        raise BadInput(
            "stdin is not a terminal, so the question cannot be asked: give --yes or --dry-run"
        )
    try:
        return input("\nGo ahead? [y/N]: ").strip().lower() in ("y", "yes")
    except (EOFError, KeyboardInterrupt):
        return False


def _rows(rows: list[tuple[str, str]]) -> list[str]:
    width = max((len(name) for name, _ in rows), default=0)
    return [f"  {name:{width}}  {value}" for name, value in rows]


def _print_section(title: str, items: list[str]) -> None:
    if items:
        print("\n".join(["", title, *(f"  - {item}" for item in items)]))
