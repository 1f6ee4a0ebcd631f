"""``pyvattn driver``: look at, build, install and remove the patched nvidia-uvm."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from driver_patch.install.actions import (
    Action,
    dkms_install_action,
    dkms_uninstall_action,
    install_action,
    uninstall_action,
)
from driver_patch.install.checkout import build as build_module
from driver_patch.install.checkout import find_built, find_checkout
from driver_patch.install.machine import Machine
from driver_patch.install.plan import Plan, Request
from driver_patch.install.report import done_lines, plan_lines, status_lines
from driver_patch.install.status import read_status
from pyvattn.cli.exits import Exit
from pyvattn.cli.output import json_option, print_json

_Command = TypeVar("_Command", bound=Callable[..., Any])

_FILE = click.Path(path_type=Path)


def _options(*options: Callable[[_Command], _Command]) -> Callable[[_Command], _Command]:
    def add(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


_where = _options(
    click.option("--root", type=_FILE, default="/", help="Root directory to work in [/]."),
    click.option("--kernel", help="Kernel release [the running one]."),
)
_source = _options(
    click.option("--module", type=_FILE, help="The built nvidia-uvm.ko [found in build/]."),
    click.option("--checkout", type=_FILE, help="Checkout of pyvattn [found]."),
    click.option("--key", type=_FILE, help="Machine-owner key that signs the module."),
    click.option("--cert", type=_FILE, help="Its certificate, DER or PEM."),
    click.option("--trust-key", is_flag=True, help="Do not ask that the key is enrolled."),
)
_how = _options(
    click.option("--allow-in-use", is_flag=True, help="Even if processes use the GPU."),
    click.option("--reload", is_flag=True, help="Reload nvidia-uvm as well."),
    click.option("--dkms", is_flag=True, help="Let NVIDIA's DKMS package build the patch."),
)
_consent = _options(
    click.option("--dry-run", is_flag=True, help="Print the plan and stop."),
    click.option("--yes", is_flag=True, help="Do not ask."),
)


@click.group()
def command() -> None:
    """Look at, build, install and remove the patched nvidia-uvm.

    It gives pages of 64K to 256K to NVIDIA's open kernel modules. NVIDIA's own
    module stays where it is, and nothing is reloaded unless you ask for it.
    """


@command.command(short_help="Say what is installed and loaded.")
@_where
@json_option
@click.pass_context
def status(ctx: click.Context, /, root: Path, kernel: str | None, as_json: bool) -> None:
    """Say which driver is installed and loaded, whether it is patched, and what is next.

    The exit code is 3 where there is no NVIDIA driver, and 1 where something needs attention.
    """
    found = read_status(Machine(root, kernel))
    if as_json:
        print_json(found.as_dict())
    else:
        click.echo("\n".join(status_lines(found)))
    if found.problems:
        ctx.exit(Exit.CHECK_FAILED)
    if not found.has_driver:
        ctx.exit(Exit.UNAVAILABLE)


@command.command(short_help="Show what an install would do.")
@_where
@_source
@_how
@click.pass_context
def plan(ctx: click.Context, /, **options: Any) -> None:
    """Show what an install would do and why it may be refused; touch nothing."""
    _show(ctx, _install_action(**options).plan())


@command.command(short_help="Build the patched module.")
@click.option("--source", type=_FILE, help="NVIDIA's source tree [found].")
@click.option("--release", help="Release of the driver [the installed one].")
@click.option("--checkout", type=_FILE, help="Checkout of pyvattn [found].")
@click.option("--kernel", help="Kernel release [the running one].")
def build(
    source: Path | None, release: str | None, checkout: Path | None, kernel: str | None
) -> None:
    """Patch a copy of NVIDIA's source and build nvidia-uvm.ko, as `make driver` does.

    Prints the path of the module. It takes a minute or more.
    """
    click.echo(build_module(Machine("/", kernel), find_checkout(checkout), source, release))


@command.command(short_help="Install the patched module (root).")
@_where
@_source
@_how
@_consent
@click.pass_context
def install(ctx: click.Context, /, dry_run: bool, yes: bool, **options: Any) -> None:
    """Show the plan, ask, and install the patched nvidia-uvm (as root)."""
    _carry_out(ctx, _install_action(**options), dry_run, yes)


@command.command(short_help="Put everything back (root).")
@_where
@_how
@_consent
@click.pass_context
def uninstall(
    ctx: click.Context,
    /,
    root: Path,
    kernel: str | None,
    allow_in_use: bool,
    reload: bool,
    dkms: bool,
    dry_run: bool,
    yes: bool,
) -> None:
    """Show the plan, ask, and put everything back as it was (as root)."""
    machine = Machine(root, kernel)
    if dkms:
        action = dkms_uninstall_action(machine)
    else:
        action = uninstall_action(machine, allow_in_use, reload)
    _carry_out(ctx, action, dry_run, yes)


def _install_action(
    root: Path,
    kernel: str | None,
    module: Path | None,
    checkout: Path | None,
    key: Path | None,
    cert: Path | None,
    trust_key: bool,
    allow_in_use: bool,
    reload: bool,
    dkms: bool,
) -> Action:
    machine = Machine(root, kernel)
    if dkms:
        return dkms_install_action(machine, find_checkout(checkout))
    built = module or find_built(machine, find_checkout(checkout))
    return install_action(machine, Request(built, key, cert, trust_key, allow_in_use, reload))


def _show(ctx: click.Context, plan: Plan) -> None:
    click.echo("\n".join(plan_lines(plan)))
    if plan.refusals:
        ctx.exit(Exit.UNAVAILABLE if plan.unavailable else Exit.CHECK_FAILED)


def _carry_out(ctx: click.Context, action: Action, dry_run: bool, yes: bool) -> None:
    shown = action.plan()
    _show(ctx, shown)
    if dry_run or shown.nothing_to_do:
        return
    if not yes:
        if not _can_ask():
            raise click.UsageError("There is nobody to ask: give --yes, or --dry-run.")
        click.confirm("\nGo ahead?", abort=True)
    click.echo("\n".join(done_lines(shown, action.carry_out())))


def _can_ask() -> bool:
    return sys.stdin.isatty()
