"""``python3 -m driver_patch.install``: what ``make install`` and its kin call.

The command line of the package (``pyvattn driver``) offers the same with prompts;
this one needs nothing but the standard library and never asks.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from driver_patch.install.actions import (
    Action,
    dkms_install_action,
    dkms_uninstall_action,
    install_action,
    uninstall_action,
)
from driver_patch.install.checkout import find_built, find_checkout
from driver_patch.install.machine import Machine
from driver_patch.install.plan import Request
from driver_patch.install.report import done_lines, plan_lines, status_lines
from driver_patch.install.status import read_status
from pyvattn.errors import ConfigError, DriverUnavailable, Error, InstallRefused

# The same numbers as the command line's, which needs click.
EXIT_REFUSED = 1
EXIT_BAD_INPUT = 2
EXIT_UNAVAILABLE = 3
EXIT_FAILED = 4


def exit_code(error: BaseException) -> int:
    """Return the exit status that ``error`` stands for."""
    if isinstance(error, InstallRefused):
        return EXIT_REFUSED
    if isinstance(error, DriverUnavailable):
        return EXIT_UNAVAILABLE
    return EXIT_BAD_INPUT if isinstance(error, ConfigError) else EXIT_FAILED


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status."""
    options = _parser().parse_args(arguments)
    try:
        machine = Machine(options.root, options.kernel)
        if options.command == "status":
            return _status(machine)
        action = _action(machine, options)
        plan = action.plan()
        print("\n".join(plan_lines(plan)), flush=True)
        if plan.refusals:
            return EXIT_UNAVAILABLE if plan.unavailable else EXIT_REFUSED
        if not options.dry_run:
            done = action.carry_out()
            print("\n".join(done_lines(plan, done)))
    except (Error, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return exit_code(error)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pyvattn-driver", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("status", "install", "uninstall"):
        command = commands.add_parser(name)
        command.add_argument("--root", type=Path, default=Path("/"), help="instead of / (DESTDIR)")
        command.add_argument("--kernel", help="kernel release instead of the running one")
    for name in ("install", "uninstall"):
        command = commands.choices[name]
        command.add_argument("--dry-run", action="store_true", help="print the plan and stop")
        command.add_argument("--reload", action="store_true", help="reload nvidia-uvm as well")
        command.add_argument("--allow-in-use", action="store_true")
        command.add_argument("--dkms", action="store_true", help="patch NVIDIA's DKMS package")
    command = commands.choices["install"]
    command.add_argument("--module", type=Path, help="the built nvidia-uvm.ko")
    command.add_argument("--key", type=Path, help="private key that signs the module")
    command.add_argument("--cert", type=Path, help="its certificate")
    command.add_argument("--trust-key", action="store_true", help="the key need not be enrolled")
    return parser


def _status(machine: Machine) -> int:
    status = read_status(machine)
    print("\n".join(status_lines(status)))
    if status.problems:
        return EXIT_REFUSED
    return 0 if status.has_driver else EXIT_UNAVAILABLE


def _action(machine: Machine, options: argparse.Namespace) -> Action:
    if options.command == "uninstall":
        if options.dkms:
            return dkms_uninstall_action(machine)
        return uninstall_action(machine, options.allow_in_use, options.reload)
    if options.dkms:
        return dkms_install_action(machine, find_checkout())
    request = Request(
        module=options.module or find_built(machine, find_checkout()),
        key=options.key,
        certificate=options.cert,
        trust_key=options.trust_key,
        allow_in_use=options.allow_in_use,
        reload=options.reload,
    )
    return install_action(machine, request)


if __name__ == "__main__":
    sys.exit(main())
