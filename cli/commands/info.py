# SPDX-License-Identifier: Apache-2.0
"""``pyvattn info``: which drivers there are, and why not the others."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import click
from rich.text import Text

from pyvattn.cli.exits import Exit
from pyvattn.cli.output import console, json_option, print_json, table
from pyvattn.detect import AutoChoice, DriverReport, choose_auto, detect_drivers, read_machine
from pyvattn.detect.devices import CudaReport, describe_cuda
from pyvattn.detect.machine import Machine
from pyvattn.errors import CalibrationError
from pyvattn.kernels import KernelInfo, survey
from pyvattn.machine import identify
from pyvattn.planner import use_calibration
from pyvattn.units import format_page_size, format_size

# Read from package metadata: nothing is imported.
_PACKAGES = (
    "pyvattn",
    "torch",
    "transformers",
    "numpy",
    "cuda-bindings",
    "flash-attn",
    "flashinfer-python",
)


@click.command()
@click.option(
    "--probe",
    is_flag=True,
    help="Map, write, read back and unmap one page of every size of every driver, and import "
    "every attention kernel.",
)
@click.option("--device", type=int, default=0, help="Ordinal of the CUDA device [0].")
@json_option
@click.pass_context
def command(ctx: click.Context, /, probe: bool, device: int, as_json: bool) -> None:
    """Show drivers, devices and attention kernels, why each is or is not available, and versions.

    With --probe the exit code is 1 if a page of an available driver fails.
    """
    machine = read_machine()
    reports = detect_drivers(device, machine)
    autos = {where: choose_auto(reports, where) for where in ("cuda", "cpu")}
    cuda = _cuda(machine, device)
    kernels = _kernels(cuda, machine, device, probe)
    probes = _probe(reports, device) if probe else []
    if as_json:
        print_json(
            {
                "versions": _versions(machine),
                "machine": {**asdict(machine), "no_gpu_reason": machine.no_gpu_reason},
                "cuda": asdict(cuda),
                "patch": _patch(),
                "drivers": [asdict(report) for report in reports],
                "plans": _plans(autos),
                "auto": {where: asdict(choice) for where, choice in autos.items()},
                "kernels": [asdict(kernel) for kernel in kernels],
                "probes": [{**asdict(p), "ok": p.ok} for p in probes],
            }
        )
    else:
        _print(reports, autos, cuda, machine)
        for where, line in _plans(autos).items():
            console().print(Text(f"Costs that plans for {where} use: {line}."))
        _print_kernels(kernels)
        if probe:
            _print_probes(probes)
        versions = [
            f"{name} {found or 'not installed'}" for name, found in _versions(machine).items()
        ]
        console().print(Text(f"\n{', '.join(versions)}; {sys.executable}"))
    if any(not p.ok for p in probes):
        ctx.exit(Exit.CHECK_FAILED)


def _versions(machine: Machine) -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    found |= {name: _version(name) for name in _PACKAGES}
    found["system"] = f"{platform.system()} {platform.release()} {platform.machine()}"
    found["nvidia driver"] = machine.release
    return found


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cuda(machine: Machine, device: int) -> CudaReport:
    """Ask CUDA where something speaks for a GPU; elsewhere the reason is known already."""
    reason = machine.no_gpu_reason
    return describe_cuda(device) if reason is None else CudaReport(reason=reason)


def _patch() -> dict[str, Any] | None:
    """What the patched module answers to the query, also where it is not usable."""
    try:
        from pyvattn import _native
    except ImportError:
        return None
    query = _native.query_patch()
    names = ("usable", "reason", "version", "page_sizes")
    return {name: getattr(query, name) for name in names}


def _plans(autos: dict[str, AutoChoice]) -> dict[str, str]:
    """Whose constants the planner takes for what ``auto`` takes, or why a calibration fails."""
    lines = {}
    for where, choice in autos.items():
        if choice.driver is None:
            continue
        try:
            costs = use_calibration(choice.driver, identify())
        except CalibrationError as error:
            lines[where] = str(error)
            continue
        lines[where] = f"{costs.source}; {costs.ignored}" if costs.ignored else costs.source
    return lines


def _probe(reports: tuple[DriverReport, ...], device: int) -> list[Any]:
    from pyvattn.probe import probe_page

    return [
        probe_page(report.name, size, device)
        for report in reports
        if report.available
        for size in report.page_sizes
    ]


def _print(
    reports: tuple[DriverReport, ...],
    autos: dict[str, AutoChoice],
    cuda: CudaReport,
    machine: Machine,
) -> None:
    out = console()
    for where, choice in autos.items():
        out.print(Text(_auto_line(where, choice)))
    out.print()
    out.print(table("Drivers", ("driver", "<available", "<pages", "<why"), map(_row, reports)))
    if cuda.devices:
        out.print(_device_table(cuda))
    elif machine.no_gpu_reason is None:
        out.print(Text(f"CUDA devices cannot be listed: {cuda.reason}"))


def _auto_line(where: str, choice: AutoChoice) -> str:
    device = "a CUDA device" if where == "cuda" else "device='cpu'"
    if choice.driver is None:
        line = f"driver='auto' on {device} finds no driver: {choice.reason}."
        return f"{line} {choice.improvement}." if choice.improvement else line
    line = f"driver='auto' on {device} takes {choice.driver}: {choice.reason}."
    return f"{line} Better: {choice.improvement}." if choice.improvement else line


def _row(report: DriverReport) -> tuple[str, ...]:
    why = f"{report.reason}; {report.advice}" if report.advice else report.reason
    sizes = " ".join(map(format_page_size, report.page_sizes))
    return report.name, "yes" if report.available else "no", sizes, why


def _device_table(cuda: CudaReport) -> Any:
    assert cuda.version is not None
    major, minor = cuda.version
    return table(
        f"CUDA devices (the driver supports CUDA {major}.{minor})",
        ("device", "<name", "<UUID", "compute", "cuMem pages", "free", "of"),
        [
            (
                f"cuda:{device.ordinal}",
                device.name,
                device.uuid,
                ".".join(map(str, device.compute_capability)),
                "none" if device.granularity is None else format_page_size(device.granularity),
                "not counted" if device.free_bytes is None else format_size(device.free_bytes),
                format_size(device.total_bytes),
            )
            for device in cuda.devices
        ],
    )


def _kernels(cuda: CudaReport, machine: Machine, device: int, probe: bool) -> list[KernelInfo]:
    """List the attention kernels; only a probe imports them. None without torch."""
    if find_spec("torch") is None:
        return []
    if probe:
        from pyvattn.attention import kernel_infos

        return kernel_infos()
    if machine.no_gpu_reason is not None or (_version("torch") or "").endswith("+cpu"):
        return survey(None)
    capability = {each.ordinal: each.compute_capability for each in cuda.devices}.get(device)
    return survey(capability, f"its device is not known ({cuda.reason}): --probe asks torch")


def _print_kernels(kernels: list[KernelInfo]) -> None:
    columns = ("kernel", "<available", "<takes", "guard", "<why not")
    console().print(
        table("Attention kernels, in the order of kernel='auto'", columns, _kernel_rows(kernels))
        if kernels
        else Text("Attention kernels need torch: pip install 'pyvattn[torch]'.")
    )


def _kernel_rows(kernels: list[KernelInfo]) -> Iterator[tuple[str, ...]]:
    for kernel in kernels:
        available = "no" if kernel.unavailable else "yes"
        guard = str(kernel.guard_tokens)
        yield kernel.name, available, kernel.supports, guard, kernel.unavailable or ""


def _print_probes(probes: list[Any]) -> None:
    rows = [
        (p.driver, format_page_size(p.page_size), "ok" if p.ok else f"FAILED: {p.failure}")
        for p in probes
    ]
    console().print(
        table("Probes: map, write, read back, unmap", ("driver", "page", "<result"), rows)
    )
