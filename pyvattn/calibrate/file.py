# SPDX-License-Identifier: Apache-2.0
"""Writes what was measured as a calibration file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any

from pyvattn.arguments import check_path, check_type
from pyvattn.calibrate.driver import DriverConstants
from pyvattn.errors import ArgumentError, CalibrationError
from pyvattn.files import write_whole
from pyvattn.machine import MadeOn, describe_machine, describe_run, identify
from pyvattn.planner.calibration import VERSION
from pyvattn.text import printable, shown


def describe(constants: Sequence[DriverConstants], here: MadeOn | None = None) -> dict[str, Any]:
    """Return the content of a calibration file.

    Raises :class:`~pyvattn.errors.ArgumentError` for what :func:`measure_driver` did not return.
    """
    check_type("constants", constants, Sequence)
    for one in constants:
        check_type("constants", one, DriverConstants)
    check_type("here", here, MadeOn, type(None))
    here = here or identify()
    run = describe_run()
    machine = ", ".join(
        part
        for part in (here.gpu, here.release and f"driver {here.release}", here.cpu)
        if part is not None
    )
    return {
        "version": VERSION,
        "source": f"pyvattn calibrate, {str(run['date'])[:10]}, {machine}, medians",
        "made_on": asdict(here),
        "drivers": {one.driver: _entry(one) for one in constants},
        "run": {**run, "machine": describe_machine()},
        "measured": [asdict(one) for one in constants],
    }


def to_share(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a calibration file others can use: no command line, which may name folders.

    Raises :class:`~pyvattn.errors.ArgumentError` for what :func:`describe` did not return.
    """
    check_type("content", content, Mapping)
    try:
        kept = {name: content[name] for name in ("version", "source", "made_on", "drivers")}
        run = {name: content["run"][name] for name in ("date", "machine")}
    except (KeyError, TypeError):
        raise ArgumentError(f"content={shown(content)}: pass what describe() returned") from None
    return {**kept, "run": run}


def write_calibration(content: dict[str, Any], path: str | PathLike[str]) -> Path:
    """Write the file whole or not at all; return its path.

    Any number of processes may write and read it at once: readers find one writer's file,
    whole. Raises :class:`~pyvattn.errors.CalibrationError` where it cannot be written, and
    :class:`~pyvattn.errors.ArgumentError` for content that JSON has no words for.
    """
    check_type("content", content, dict)
    target = check_path("path", path)
    try:
        text = json.dumps(content, indent=1) + "\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise ArgumentError(
            f"content={shown(content)} cannot be written as JSON: {error}"
        ) from None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, [text])
    except OSError as error:
        raise CalibrationError(
            f"cannot write the calibration {printable(str(target))}: {error.strerror or error}; "
            "name another file with --out"
        ) from error
    return target


def _entry(found: DriverConstants) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "map_us": {str(size): us for size, us in found.map_us.items()},
        "unmap_us": {str(size): us for size, us in found.unmap_us.items()},
        "zero_gb_per_s": found.zero_gb_per_s,
    }
    if found.read_gb_per_s is not None:
        entry["read_gb_per_s"] = found.read_gb_per_s
    if found.losses is not None:
        entry["losses"] = asdict(found.losses)
    return entry
