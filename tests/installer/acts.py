# SPDX-License-Identifier: Apache-2.0
"""Install and uninstall as the command line does them once everybody has agreed."""

from __future__ import annotations

from functools import partial

from driver_patch.install import dkms
from driver_patch.install.install import Request, carry_out, plan_install, plan_uninstall
from driver_patch.install.machine import Machine


def install(machine: Machine, request: Request) -> list[str]:
    return carry_out(machine, partial(plan_install, machine, request))


def uninstall(machine: Machine) -> list[str]:
    return carry_out(machine, partial(plan_uninstall, machine))


def dkms_install(machine: Machine) -> list[str]:
    return carry_out(machine, partial(dkms.plan_install, machine))


def dkms_uninstall(machine: Machine) -> list[str]:
    return carry_out(machine, partial(dkms.plan_uninstall, machine))
