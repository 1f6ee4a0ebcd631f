# SPDX-License-Identifier: Apache-2.0
"""``pyvattn calibrate``: measure the constants that ``plan`` and "auto" use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import click
from rich.text import Text

from pyvattn.cli.filled import filler, given
from pyvattn.cli.output import console, json_option, print_json, progress_console, table
from pyvattn.errors import DriverUnavailable, MissingDependency
from pyvattn.planner import DEFAULT_COSTS
from pyvattn.planner.calibration import VARIABLE, default_path
from pyvattn.units import format_page_size, format_size

_SHARING = (
    "Send the JSON that follows to the project, as an issue named after the GPU. It names CPU, "
    "GPU, driver and packages, and no user, host or folder."
)


def _options(_: click.Context) -> Callable[..., Any]:
    from pyvattn.calibrate import Options

    return Options


_option = filler(_options)


@click.command()
@click.option(
    "--driver",
    "drivers",
    multiple=True,
    type=click.Choice(list(DEFAULT_COSTS)),
    help="Driver to measure; may be repeated [all that this machine has].",
)
@_option("--device", type=int, help="Ordinal of the CUDA device.")
@_option("--rounds", type=click.IntRange(min=3), help="Rounds of each call.")
@_option(
    "--no-kernels",
    "kernels",
    flag_value=False,
    default=None,
    help="Do not measure what layouts cost kernels on a GPU.",
)
@click.option("--out", type=click.Path(dir_okay=False), help="File to write [the user's own].")
@click.option(
    "--share", is_flag=True, help="Print what to send to the project, for others with this GPU."
)
@json_option
def command(
    drivers: tuple[str, ...], out: str | None, share: bool, as_json: bool, **options: Any
) -> None:
    """Measure map calls, unmap calls, zeroing, reading and copying, and keep the medians.

    `plan` and page_size="auto" then use them. Drivers that are not available are skipped,
    unless they are named.
    """
    from pyvattn.calibrate import Options, describe, to_share, write_calibration

    # Before minutes of measuring: there may be nowhere to write.
    target = out if out is not None else default_path()
    found = list(_measured(drivers, Options(**given(options))))
    content = describe(found)
    path = write_calibration(content, target)
    if share:
        progress_console().print(Text(_SHARING))
        print_json(to_share(content))
        return
    if as_json:
        print_json({"path": str(path), **content})
        return
    _print(found)
    console().print(Text(f"Written: {path}", no_wrap=True, overflow="ignore"))
    if out is not None:
        console().print(Text(f"`plan --calibration` and {VARIABLE} take it from there."))


def _measured(drivers: Sequence[str], options: Any) -> Iterator[Any]:
    from pyvattn.calibrate import measure_driver

    for name in drivers or DEFAULT_COSTS:
        with progress_console().status(f"calibrating {name}"):
            try:
                constants = measure_driver(name, options)
            except DriverUnavailable as error:
                if drivers:
                    raise
                progress_console().print(Text(f"{name} was skipped: {error}"))
                continue
            yield _with_losses(constants, options) if options.kernels else constants


def _with_losses(constants: Any, options: Any) -> Any:
    """Add what layouts cost kernels, where there is a GPU and torch to tell."""
    if constants.driver == "host":
        return constants
    from pyvattn.calibrate.kernels import measure_losses

    try:
        losses = measure_losses(constants.driver, options.device, options.rounds)
    except (DriverUnavailable, MissingDependency) as error:
        progress_console().print(Text(f"{constants.driver}: kernels were not measured: {error}"))
        return constants
    return replace(constants, losses=losses)


def _print(found: Sequence[Any]) -> None:
    out = console()
    for one in found:
        rows = [
            (format_size(size), f"{us:.1f}", f"{one.unmap_us[size]:.1f}")
            for size, us in one.map_us.items()
        ]
        title = f"{one.driver}, {format_page_size(one.page_size)} pages, µs"
        out.print(table(title, ("extent", "map", "unmap"), rows))
        rates = [
            f"{label} {rate:.4g} GB/s"
            for label, rate in (
                ("zeroing", one.zero_gb_per_s),
                ("reading", one.read_gb_per_s),
            )
            if rate is not None
        ]
        out.print(
            Text(
                f"A map call costs {one.fixed_us:.3g} µs and {one.us_per_mib:.3g} µs for each MiB; "
                f"{', '.join(rates)}."
            )
        )
        if one.losses is not None:
            shares = ", ".join(f"{name} {share:.1%}" for name, share in vars(one.losses).items())
            out.print(Text(f"Decode time that memory costs kernels: {shares}."))
        out.print()
