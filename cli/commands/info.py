"""``pyvattn info``: which drivers there are, and why not the others."""

from __future__ import annotations

import platform
import sys
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import click
from rich.text import Text

from pyvattn.cli.exits import Exit
from pyvattn.cli.output import console, json_option, print_json, table
from pyvattn.detect import DriverReport, auto_driver, detect_drivers, read_machine
from pyvattn.units import format_page_size

# Read from package metadata: nothing is imported.
_PACKAGES = (
    "pyvattn",
    "torch",
    "transformers",
    "numpy",
    "cuda-python",
    "flash-attn",
    "flashinfer-python",
)


@click.command()
@click.option(
    "--probe",
    is_flag=True,
    help="Map, write, read back and unmap one page of every size of every driver.",
)
@click.option("--device", type=int, default=0, help="Ordinal of the CUDA device [0].")
@json_option
@click.pass_context
def command(ctx: click.Context, /, probe: bool, device: int, as_json: bool) -> None:
    """Show drivers and attention kernels, why each is or is not available, and versions.

    With --probe the exit code is 1 if a page of an available driver fails.
    """
    machine = read_machine()
    reports = detect_drivers(device, machine)
    probes = _probe(reports, device) if probe else []
    autos = {where: auto_driver(reports, where) for where in ("cuda", "cpu")}
    if as_json:
        print_json(
            {
                "versions": _versions(),
                "machine": asdict(machine),
                "drivers": [asdict(report) for report in reports],
                "auto": autos,
                "kernels": [asdict(kernel) for kernel in _kernels()],
                "probes": [{**asdict(p), "ok": p.ok} for p in probes],
            }
        )
    else:
        _print(reports, autos)
        _print_kernels(_kernels())
        if probe:
            _print_probes(probes)
    if any(not p.ok for p in probes):
        ctx.exit(Exit.CHECK_FAILED)


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    found["system"] = f"{platform.system()} {platform.release()} {platform.machine()}"
    found["nvidia driver"] = read_machine().release
    return found


def _probe(reports: tuple[DriverReport, ...], device: int) -> list[Any]:
    from pyvattn.detect.probe import probe_page

    return [
        probe_page(report.name, size, device)
        for report in reports
        if report.available
        for size in report.page_sizes
    ]


def _print(reports: tuple[DriverReport, ...], autos: dict[str, str | None]) -> None:
    out = console()
    rows = [
        (
            report.name,
            "yes" if report.available else "no",
            " ".join(map(format_page_size, report.page_sizes)),
            report.reason,
        )
        for report in reports
    ]
    out.print(table("Drivers", ("driver", "<available", "<pages", "<why"), rows))
    for where, name in autos.items():
        device = "a CUDA device" if where == "cuda" else "device='cpu'"
        chosen = f"means {name}" if name else "finds no driver here"
        out.print(Text(f"driver='auto' on {device} {chosen}."))
    for report in reports:
        if report.advice:
            out.print(Text(f"{report.name}: {report.advice}."))
    versions = [f"{name} {found or 'not installed'}" for name, found in _versions().items()]
    out.print(Text(f"\n{', '.join(versions)}; {sys.executable}"))


def _kernels() -> list[Any]:
    """Import every attention kernel that is installed; none without torch."""
    if find_spec("torch") is None:
        return []
    from pyvattn.attention import kernel_infos

    return kernel_infos()


def _print_kernels(kernels: list[Any]) -> None:
    rows = [
        (kernel.name, "no" if kernel.unavailable else "yes", kernel.supports, kernel.unavailable)
        for kernel in kernels
    ]
    columns = ("kernel", "<available", "<takes", "<why not")
    console().print(
        table("Attention kernels, in the order of kernel='auto'", columns, rows)
        if rows
        else Text("Attention kernels need torch: pip install 'pyvattn[torch]'.")
    )


def _print_probes(probes: list[Any]) -> None:
    rows = [
        (p.driver, format_page_size(p.page_size), "ok" if p.ok else f"FAILED: {p.failure}")
        for p in probes
    ]
    console().print(
        table("Probes: map, write, read back, unmap", ("driver", "page", "<result"), rows)
    )
