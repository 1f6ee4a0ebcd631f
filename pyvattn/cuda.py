# SPDX-License-Identifier: Apache-2.0
"""What Python asks of CUDA devices, through NVIDIA's cuda-python.

The cache itself does not need this module: the C++ core talks to libcuda on its
own. It is for people and reports: `pyvattn info`, the benchmarks, error messages.
Nothing here makes a context but :func:`memory`, which says so.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

from pyvattn.errors import (
    ConfigError,
    DriverError,
    DriverUnavailable,
    MissingDependency,
)

__all__ = ["Device", "Memory", "cuda_version", "devices", "error_name", "memory"]


@dataclass(frozen=True)
class Device:
    """One CUDA device as this process numbers it."""

    ordinal: int
    name: str
    uuid: str
    """As ``nvidia-smi -L`` prints it: ``GPU-`` and 32 hexadecimal digits."""
    compute_capability: tuple[int, int]
    total_bytes: int
    granularity: int | None
    """Bytes of the smallest cuMem page; ``None`` where the device has no cuMemMap."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one device."""

    free: int
    total: int


def cuda_version() -> tuple[int, int]:
    """Return the newest CUDA version that the installed driver supports.

    Source: cuDriverGetVersion. Raises :class:`~pyvattn.errors.MissingDependency`
    and :class:`~pyvattn.errors.DriverUnavailable`, as every function here.
    """
    driver = _driver()
    version = int(_call(driver, "cuDriverGetVersion"))
    return version // 1000, version % 1000 // 10


def devices() -> list[Device]:
    """List the devices that CUDA shows to this process."""
    driver = _start()
    return [_describe(driver, ordinal) for ordinal in range(_call(driver, "cuDeviceGetCount"))]


def memory(ordinal: int = 0) -> Memory:
    """Return the free and total bytes of a device. Source: cuMemGetInfo.

    It uses the device's primary context, the one of torch: where the process has
    none yet, one is made for the call, which takes a moment and some device memory.
    """
    driver = _start()
    device = _find(driver, ordinal)
    context = _call(driver, "cuDevicePrimaryCtxRetain", device)
    try:
        _call(driver, "cuCtxPushCurrent", context)
        try:
            free, total = _call(driver, "cuMemGetInfo")
        finally:
            _call(driver, "cuCtxPopCurrent")
    finally:
        _call(driver, "cuDevicePrimaryCtxRelease", device)
    return Memory(int(free), int(total))


def error_name(status: int) -> str:
    """Return CUDA's own name of a status code, such as ``CUDA_ERROR_OUT_OF_MEMORY``."""
    driver = _start()
    try:
        return _name(driver, driver.CUresult(status))
    except ValueError:  # a status that this cuda-python does not know
        return f"CUresult {status}"


def _driver() -> ModuleType:
    try:
        return import_module("cuda.bindings.driver")
    except ImportError as error:
        raise MissingDependency(
            "cuda-python is not installed: pip install 'pyvattn[cuda]'"
        ) from error


def _start() -> ModuleType:
    """Load libcuda and start it in this process."""
    driver = _driver()
    try:
        status = driver.cuInit(0)[0]
    except RuntimeError as error:  # cuda-python finds no libcuda
        raise DriverUnavailable(f"no NVIDIA driver here: {error}") from error
    if status != driver.CUresult.CUDA_SUCCESS:
        raise DriverUnavailable(f"cuInit failed: {_name(driver, status)} ({_text(driver, status)})")
    return driver


def _call(driver: ModuleType, function: str, *arguments: Any) -> Any:
    """Call a driver function; return its results without the status, checked."""
    try:
        status, *results = getattr(driver, function)(*arguments)
    except RuntimeError as error:
        raise DriverUnavailable(f"no NVIDIA driver here: {error}") from error
    if status != driver.CUresult.CUDA_SUCCESS:
        name = _name(driver, status)
        message = f"{function} failed: {name} ({_text(driver, status)})"
        raise DriverError(message, operation=function, status=name)
    return results[0] if len(results) == 1 else tuple(results)


def _find(driver: ModuleType, ordinal: int) -> Any:
    count = _call(driver, "cuDeviceGetCount")
    if not 0 <= ordinal < count:
        raise ConfigError(
            f"there is no device cuda:{ordinal}: CUDA sees {count} here, numbered from 0 "
            "(CUDA_VISIBLE_DEVICES can hide some)"
        )
    return _call(driver, "cuDeviceGet", ordinal)


def _describe(driver: ModuleType, ordinal: int) -> Device:
    device = _find(driver, ordinal)
    identity = uuid.UUID(bytes=bytes(_call(driver, "cuDeviceGetUuid", device).bytes))
    return Device(
        ordinal=ordinal,
        name=_call(driver, "cuDeviceGetName", 256, device).split(b"\0")[0].decode(),
        uuid=f"GPU-{identity}",
        compute_capability=(
            _attribute(driver, device, "COMPUTE_CAPABILITY_MAJOR"),
            _attribute(driver, device, "COMPUTE_CAPABILITY_MINOR"),
        ),
        total_bytes=int(_call(driver, "cuDeviceTotalMem", device)),
        granularity=_granularity(driver, device, ordinal),
    )


def _granularity(driver: ModuleType, device: Any, ordinal: int) -> int | None:
    if not _attribute(driver, device, "VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED"):
        return None
    properties = driver.CUmemAllocationProp()
    properties.type = driver.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
    properties.location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    properties.location.id = ordinal
    minimum = driver.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_MINIMUM
    return int(_call(driver, "cuMemGetAllocationGranularity", properties, minimum))


def _attribute(driver: ModuleType, device: Any, name: str) -> int:
    attribute = getattr(driver.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
    return int(_call(driver, "cuDeviceGetAttribute", attribute, device))


def _name(driver: ModuleType, status: Any) -> str:
    return _decode(driver.cuGetErrorName(status)[1], status)


def _text(driver: ModuleType, status: Any) -> str:
    return _decode(driver.cuGetErrorString(status)[1], status)


def _decode(text: bytes | None, status: Any) -> str:
    return text.decode() if text else f"CUresult {int(status)}"
