# SPDX-License-Identifier: Apache-2.0
"""What CUDA says of its devices, through cuda-python; every failure is a reason, not an error."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from pyvattn import cuda
from pyvattn.errors import Error


@dataclass(frozen=True)
class DeviceReport:
    """One CUDA device. Sizes are in bytes; ``free_bytes`` is None where it was not counted.

    ``granularity`` is that of cuMem pages, None where the device has no such pages.
    """

    ordinal: int
    name: str
    uuid: str
    compute_capability: tuple[int, int]
    granularity: int | None
    total_bytes: int
    free_bytes: int | None


@dataclass(frozen=True)
class CudaReport:
    """The newest CUDA version that the driver supports, its devices, or why neither is known."""

    version: tuple[int, int] | None = None
    devices: tuple[DeviceReport, ...] = ()
    reason: str = ""


def describe_cuda(counted: int) -> CudaReport:
    """Ask CUDA; makes a context on device ``counted`` for a moment, to count its free memory."""
    try:
        version = cuda.cuda_version()
        devices = tuple(_describe(device, counted) for device in cuda.devices())
    except Error as error:
        return CudaReport(reason=str(error))
    return CudaReport(version, devices)


def _describe(device: cuda.Device, counted: int) -> DeviceReport:
    free = None
    if device.ordinal == counted:
        with suppress(Error):
            free = cuda.memory(device.ordinal).free
    return DeviceReport(
        device.ordinal,
        device.name,
        device.uuid,
        device.compute_capability,
        device.granularity,
        device.total_bytes,
        free,
    )
