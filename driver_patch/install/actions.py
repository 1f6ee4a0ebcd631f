"""Each thing that can be done, as a pair: work out the plan, carry it out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from driver_patch.install import dkms
from driver_patch.install.install import install, plan_uninstall, uninstall
from driver_patch.install.machine import Machine
from driver_patch.install.plan import Plan, Request, plan_install


@dataclass(frozen=True)
class Action:
    """``plan`` touches nothing; ``carry_out`` checks everything again before it does."""

    plan: Callable[[], Plan]
    carry_out: Callable[[], Plan]


def install_action(machine: Machine, request: Request) -> Action:
    """Return the install of a built module."""
    return Action(partial(plan_install, machine, request), partial(install, machine, request))


def uninstall_action(machine: Machine, allow_in_use: bool, reload: bool) -> Action:
    """Return the removal of an installed module."""
    arguments = (machine, allow_in_use, reload)
    return Action(partial(plan_uninstall, *arguments), partial(uninstall, *arguments))


def dkms_install_action(machine: Machine, checkout: Path) -> Action:
    """Return the patching of NVIDIA's DKMS package."""
    arguments = (machine, checkout)
    return Action(partial(dkms.plan_install, *arguments), partial(dkms.install, *arguments))


def dkms_uninstall_action(machine: Machine) -> Action:
    """Return the un-patching of NVIDIA's DKMS package."""
    return Action(partial(dkms.plan_uninstall, machine), partial(dkms.uninstall, machine))
