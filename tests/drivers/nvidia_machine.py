# SPDX-License-Identifier: Apache-2.0
"""A driver on the emulated NVIDIA machine, with addresses and one slab, for tests."""

from __future__ import annotations

import gc

import mapped_space

from pyvattn import _native

emulated_cuda, emulated_nvidia = _native.emulated_cuda, _native.emulated_nvidia

KB = 1 << 10
REGION = 2 << 20
# What the drivers on the emulated machine make known to CUDA at once: no ioctl goes over
# the border between two.
CHUNK = 4 << 20
NO_MEMORY = 0x51
INSUFFICIENT_RESOURCES = 0x1A
GPU_IS_LOST = 0x0F
MAP = "UVM_MAP_EXTERNAL_ALLOCATION"
UNMAP = "UVM_UNMAP_EXTERNAL"


def start(**settings) -> None:
    """Start the machine from new; a release is also the one of its layout."""
    gc.collect()  # no driver of the machine before may live on
    wanted = emulated_nvidia.Settings()
    if "release" in settings:
        wanted.layout_of = settings["release"]
    for name, value in settings.items():
        setattr(wanted, name, value)
    emulated_nvidia.reset(wanted)


def held() -> tuple[int, ...]:
    """What clients hold of the machine; all zeros after everything was given back."""
    gc.collect()
    nvidia, cuda = emulated_nvidia.holdings(), emulated_cuda.holdings()
    return (
        nvidia.clients,
        nvidia.objects,
        nvidia.descriptors,
        nvidia.vattn_handles,
        cuda.reservations,
        cuda.allocations,
        cuda.mappings,
        cuda.streams,
        cuda.events,
        cuda.contexts,
        len(emulated_nvidia.mappings()),
    )


NOTHING = (0,) * 11


class Calls:
    """Counts calls of ioctls from its construction on."""

    def __init__(self, *names: str):
        self.before = {name: emulated_nvidia.calls(name) for name in names}

    def made(self) -> dict[str, int]:
        return {name: emulated_nvidia.calls(name) - n for name, n in self.before.items()}


class Space(mapped_space.Space):
    """``regions`` of 2 MiB of addresses of a driver of its own, and a slab as large."""

    def __init__(self, name: str, page: int, regions: int = 8, device: int = 0):
        driver = _native.make_driver(name, page, device)
        super().__init__(driver, page, pages=regions * REGION // page, alignment=REGION)

    def chunks(self, place: int, pages: int) -> int:
        """How many chunks ``pages`` pages from ``place`` on touch."""
        first, last = place * self.page // CHUNK, ((place + pages) * self.page - 1) // CHUNK
        return last - first + 1

    def zeros_everywhere(self) -> bool:
        """Whether every page of the addresses can be read and begins with zeros."""
        return all(self.read(i) == bytes(64) for i in range(self.bytes // self.page))


def writable() -> list[str]:
    """The machine's mappings of pages that may be written."""
    return [line for line in emulated_nvidia.mappings() if "read-write" in line]
