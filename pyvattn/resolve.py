# SPDX-License-Identifier: Apache-2.0
"""From what a user writes to what the core opens: device, driver, page size and layout."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass, replace
from functools import cache, partial

from pyvattn import _native
from pyvattn.arguments import check_flag, check_name, check_type
from pyvattn.auto import ON_CUDA, first_available, named_by_environment
from pyvattn.errors import CalibrationError, ConfigError, DriverUnavailable, PlanWarning
from pyvattn.geometry import Geometry
from pyvattn.logs import logger_of
from pyvattn.machine import MadeOn, identify
from pyvattn.planner import plan_parts, use_calibration
from pyvattn.planner.costs import DriverCosts, default_costs
from pyvattn.planner.groups import planned_geometries
from pyvattn.spec import CacheSpec
from pyvattn.text import shown
from pyvattn.units import format_page_size

_log = logger_of(__name__)

# Drivers that lend another's costs to the planner: they behave like it.
_PLANNED_AS = {"host-accounting": "host"}
_PREFERRED, _FALLBACK = ON_CUDA
_CUDA_DEVICE = re.compile(r"cuda(?::([0-9]{1,9}))?")


@dataclass(frozen=True)
class Resolved:
    """What a cache is opened with; ``device`` is the ordinal of the CUDA device, or 0.

    ``read_ahead`` are the tokens that the planner would map at a time.
    """

    driver: str
    device: int
    geometries: tuple[Geometry, ...]
    read_ahead: int


@dataclass(frozen=True)
class Opened:
    """An open driver, where tokens lie on its pages, and the planner's read-ahead in tokens.

    There is a geometry for each group of layers.
    """

    driver: _native.Driver
    geometries: tuple[Geometry, ...]
    read_ahead: int


def open_driver(
    spec: CacheSpec,
    *,
    device: str,
    driver: str,
    page_size: int | str,
    layout: str,
    layers_per_arena: int | None,
    peer_access: bool,
) -> Opened:
    """Open what :func:`resolve` finds.

    Only once it is open can the patched module say whether it serves this GPU. Where it
    does not, "auto" takes ``cumem``, with a :class:`~pyvattn.errors.PlanWarning` that
    says why.
    """
    check_type("spec", spec, CacheSpec)
    check_name("driver", driver, such_as="auto")
    check_name("layout", layout, such_as="auto")
    check_flag("peer_access", peer_access)
    find = partial(
        resolve,
        spec,
        device=device,
        page_size=page_size,
        layout=layout,
        layers_per_arena=layers_per_arena,
    )
    chosen = find(driver=driver)
    try:
        return _open(chosen, peer_access)
    except DriverUnavailable as error:
        if chosen.driver != _PREFERRED or _asked(driver, on_cuda=True) != "auto":
            raise
        warnings.warn(f"driver='auto' takes {_FALLBACK}: {error}", PlanWarning, stacklevel=3)
    return _open(find(driver=_FALLBACK), peer_access)


def _open(chosen: Resolved, peer_access: bool) -> Opened:
    page_size = chosen.geometries[0].page_size
    driver = _native.make_driver(chosen.driver, page_size, chosen.device, peer_access)
    _log.info(
        "opened %s on device %d: pages of %s, layout %s, %d tokens read ahead",
        chosen.driver,
        chosen.device,
        format_page_size(page_size),
        ", ".join(geometry.layout_name for geometry in chosen.geometries),
        chosen.read_ahead,
    )
    return Opened(driver, chosen.geometries, chosen.read_ahead)


def resolve(
    spec: CacheSpec,
    *,
    device: str,
    driver: str,
    page_size: int | str,
    layout: str,
    layers_per_arena: int | None,
) -> Resolved:
    """Turn every "auto" into a choice.

    Raises :class:`~pyvattn.errors.ConfigError` for a device, driver, page size
    or layout that does not exist, and
    :class:`~pyvattn.errors.DriverUnavailable` for a driver that this machine
    cannot offer. Warns with :class:`~pyvattn.errors.PlanWarning` where what was
    asked for by name makes kernels slow, or mapping too slow to hide, and where a
    calibration that the environment names cannot be used.
    """
    on_cuda, ordinal = _parse_device(check_device(device))
    name = choose_driver(driver, on_cuda, ordinal)
    planned_as = _PLANNED_AS.get(name) or _native.emulates(name) or name
    plans = plan_parts(
        spec,
        driver=planned_as,
        costs=_costs(planned_as),
        page_size=page_size,
        layout=layout,
        layers_per_arena=layers_per_arena,
    )
    if on_cuda:
        # Ordinary memory, which also the emulated devices have, has no such TLB.
        for text in (text for planned in plans for text in planned.warnings):
            warnings.warn(text, PlanWarning, stacklevel=4)
    geometries = planned_geometries(spec, plans)
    read_ahead = max(planned.choice.read_ahead_tokens for planned in plans)
    return Resolved(name, ordinal, geometries, read_ahead)


def _costs(driver: str) -> DriverCosts:
    """Return the constants to plan with: a calibration never keeps a cache from opening."""
    try:
        return use_calibration(driver, _this_machine())
    except CalibrationError as error:
        warnings.warn(f"planned without it: {error}", PlanWarning, stacklevel=5)
        return replace(default_costs(driver), ignored=str(error))


@cache
def _this_machine() -> MadeOn:
    return identify()


def check_device(device: object) -> str:
    """Return the name of a device; a ``torch.device`` is as good as its name.

    Raises :class:`~pyvattn.errors.ConfigError` for what is none.
    """
    name = "" if isinstance(device, int) else str(device)
    if name != "cpu" and not _CUDA_DEVICE.fullmatch(name):
        raise ConfigError(f"device {shown(device)} is unknown: use 'cuda', 'cuda:0' … or 'cpu'")
    return name


def _parse_device(name: str) -> tuple[bool, int]:
    match = _CUDA_DEVICE.fullmatch(name)
    return (False, 0) if match is None else (True, int(match.group(1) or 0))


def _asked(driver: str, on_cuda: bool) -> str:
    """Return the driver that is wanted, the environment's where ``driver`` is "auto".

    What the environment says is for the devices that its driver serves.
    """
    named = named_by_environment() if driver == "auto" else None
    if named is None or (named in _native.driver_names() and _needs_cuda(named) != on_cuda):
        return driver
    return named


def choose_driver(driver: str, on_cuda: bool, ordinal: int) -> str:
    """Return the driver that a user's word stands for; raises what :func:`resolve` does."""
    wanted = _asked(driver, on_cuda)
    if wanted == "auto":
        return _auto(on_cuda, ordinal)
    names = _native.driver_names()
    if wanted not in names:
        raise ConfigError(
            f"driver {shown(wanted)} is unknown: use 'auto' or one of {', '.join(names)}"
        )
    if on_cuda != _needs_cuda(wanted):
        place = "a CUDA device" if _needs_cuda(wanted) else "device='cpu'"
        raise ConfigError(f"driver {wanted!r} is for {place}")
    _native.driver_capabilities(wanted, ordinal)
    return wanted


def _needs_cuda(driver: str) -> bool:
    return _native.has_streams(driver) and _native.emulates(driver) is None


def _auto(on_cuda: bool, ordinal: int) -> str:
    return first_available(on_cuda, lambda name: _native.driver_capabilities(name, ordinal))
