# SPDX-License-Identifier: Apache-2.0
"""Calibration files: this machine's constants of the cost model, as ``pyvattn calibrate`` writes.

.. code-block:: json

    {"version": 1, "source": "…", "made_on": {"cpu": "…", "gpu": "…", "release": "…"},
     "drivers": {"stock-uvm": {"map_us": {"65536": 19.4}, "read_gb_per_s": 4515}}}

Only ``source`` and ``drivers`` are needed, so a file can also be written by hand. A file of
another GPU, driver release or CPU is refused where it was asked for by name, and left out
with a reason where it was merely found.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

from pyvattn.arguments import check_name, check_path, check_type
from pyvattn.errors import CalibrationError
from pyvattn.files import read_text
from pyvattn.logs import logger_of
from pyvattn.machine import MadeOn
from pyvattn.planner.costs import Curve, DriverCosts, curve_of, default_costs
from pyvattn.planner.tlb import Losses
from pyvattn.text import printable, shown

VERSION = 1
VARIABLE = "PYVATTN_CALIBRATION"
OFF = "off"
_log = logger_of(__name__)

# A file with every driver and page size, and all that was measured, has some ten thousand.
_MOST_BYTES = 16 << 20

_RATES = ("read_gb_per_s", "zero_gb_per_s")
_CURVES = ("map_us", "unmap_us")
# What reading constants of the wrong form raises.
_UNUSABLE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError)


@dataclass(frozen=True)
class Calibration:
    """The constants of one file, and the machine that they were measured on."""

    source: str
    drivers: Mapping[str, Mapping[str, Any]]
    made_on: MadeOn = field(default_factory=MadeOn)

    def costs(self, driver: str) -> DriverCosts:
        """Return the constants of ``driver``, those that the file names in place of the defaults.

        Raises :class:`~pyvattn.errors.CalibrationError` for constants that cannot be.
        """
        base = default_costs(driver)
        try:
            entry = self.drivers.get(driver)
            return base if entry is None else _replaced(base, entry, self.source)
        except _UNUSABLE as error:
            raise CalibrationError(
                f"the constants of {driver} are not usable ({_reason(error)}): make them anew with "
                "`pyvattn calibrate`"
            ) from error

    def mismatch(self, driver: str, here: MadeOn) -> str | None:
        """Say why the constants of ``driver`` are not this machine's, or return None.

        A machine without a GPU may plan for one that has.
        """
        check_name("driver", driver, such_as="cumem")
        check_type("here", here, MadeOn)
        if driver not in self.drivers:
            return None
        names = ("cpu",) if driver == "host" else ("gpu", "release")
        for name in names:
            then, now = getattr(self.made_on, name), getattr(here, name)
            if then is not None and now is not None and then != now:
                what = {"cpu": "CPU", "gpu": "GPU", "release": "driver release"}[name]
                return f"it was made on the {what} {then}, and this machine has {now}"
        return None


def default_path() -> Path:
    """Return where ``pyvattn calibrate`` writes and a plan looks: in the user's config folder.

    Raises :class:`~pyvattn.errors.CalibrationError` for a user who has no home.
    """
    config = os.environ.get("XDG_CONFIG_HOME")
    try:
        folder = Path(config) if config else Path.home() / ".config"
    except RuntimeError as error:
        raise CalibrationError(
            f"there is no folder for calibrations ({error}): set HOME or XDG_CONFIG_HOME"
        ) from error
    return folder / "pyvattn" / "calibration.json"


def read_calibration(path: str | PathLike[str]) -> Calibration:
    """Read and check a file; raise :class:`~pyvattn.errors.CalibrationError` naming it."""
    # str() of a number may fail: Python has a limit of digits.
    where = printable(str(path)) if isinstance(path, (str, PathLike)) else shown(path)
    try:
        parsed = json.loads(read_text(check_path("path", path), _MOST_BYTES))
        if parsed.get("version", VERSION) != VERSION:
            raise ValueError(f"version {parsed['version']!r} is not {VERSION}")
        made_on = MadeOn(**{name: _text(of) for name, of in parsed.get("made_on", {}).items()})
        found = Calibration(printable(str(parsed["source"])), dict(parsed["drivers"]), made_on)
        for driver in found.drivers:
            found.costs(driver)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise CalibrationError(f"cannot read the calibration {where}: {reason}") from error
    except _UNUSABLE as error:
        raise _unusable(where, _reason(error)) from error
    except RecursionError as error:
        raise _unusable(where, "it is nested too deeply") from error
    return found


def _reason(error: Exception) -> str:
    cause = error.__cause__ if isinstance(error, CalibrationError) else error
    return f"{type(cause).__name__}: {printable(str(cause))}"


def _unusable(where: str, reason: str) -> CalibrationError:
    return CalibrationError(
        f"the calibration {where} is not usable ({reason}): make it anew with `pyvattn calibrate`"
    )


def _text(value: object) -> str | None:
    return None if value is None else printable(str(value))


def use_calibration(
    driver: str, here: MadeOn | None = None, path: str | PathLike[str] | None = None
) -> DriverCosts:
    """Return the constants of ``driver``: calibrated where there is a calibration, else defaults.

    The file is ``path``, or the one that the environment variable PYVATTN_CALIBRATION names
    ("off" for none), or the one in the user's config folder. Raises
    :class:`~pyvattn.errors.CalibrationError` for one that was named and cannot be used;
    the user's own is then left out, and ``ignored`` of the result says why.
    """
    check_type("here", here, MadeOn, type(None))
    here = here or MadeOn()
    named = os.environ.get(VARIABLE) if path is None else check_path("path", path)
    if str(named) == OFF:
        return default_costs(driver)
    if named:
        return _calibrated(driver, here, Path(named))
    try:
        return _calibrated(driver, here, default_path())
    except CalibrationError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return default_costs(driver)
        _log.warning("planning with built-in constants: %s", error)
        return replace(default_costs(driver), ignored=str(error))


def _calibrated(driver: str, here: MadeOn, path: Path) -> DriverCosts:
    calibration = read_calibration(path)
    if reason := calibration.mismatch(driver, here):
        raise CalibrationError(
            f"the calibration {printable(str(path))} does not fit: {reason}; make it anew with "
            "`pyvattn calibrate`"
        )
    costs = calibration.costs(driver)
    if driver not in calibration.drivers:
        return costs
    return replace(costs, source=f"{costs.source}; {printable(str(path))}")


def _replaced(base: DriverCosts, entry: Mapping[str, Any], source: str) -> DriverCosts:
    known = {*_CURVES, *_RATES, "losses"}
    if unknown := set(entry) - known:
        raise ValueError(f"{base.driver} has no {', '.join(sorted(unknown))}")
    changes: dict[str, Any] = {"source": source}
    for name in _CURVES:
        if name in entry:
            changes[name] = _curve(name, entry[name])
    if "map_us" in entry:
        changes["measured"] = True
    for name in _RATES:
        if name in entry:
            changes[name] = _positive(name, entry[name])
    if "losses" in entry:
        losses = Losses(**entry["losses"])
        if "token_32" not in entry["losses"]:
            # More tokens in an entry cost no more than fewer.
            losses = replace(losses, token_32=min(losses.token_32, losses.token))
        changes["losses"] = losses
        if any(not 0 <= share < 100 for share in vars(losses).values()):
            raise ValueError("losses are shares from 0")
    return replace(base, **changes)


def _curve(name: str, pairs: Mapping[str, Any]) -> Curve:
    curve = curve_of(pairs)
    if not curve or any(size <= 0 or not 0 < us < float("inf") for size, us in curve):
        raise ValueError(f"{name} needs positive sizes and times")
    return curve


def _positive(name: str, value: Any) -> float:
    rate = float(value)
    if not 0 < rate < float("inf"):
        raise ValueError(f"{name} must be positive")
    return rate
