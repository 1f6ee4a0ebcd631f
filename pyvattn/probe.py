# SPDX-License-Identifier: Apache-2.0
"""Proves a page size of a driver: maps one page, writes, reads back, unmaps."""

from __future__ import annotations

from dataclasses import dataclass

from pyvattn.errors import Error

_PATTERN = 0xA5


@dataclass(frozen=True)
class Probe:
    """The outcome for one page size (bytes) of one driver; no ``failure`` is success."""

    driver: str
    page_size: int
    failure: str | None = None

    @property
    def ok(self) -> bool:
        """Whether every byte came back."""
        return self.failure is None


def probe_page(driver: str, page_size: int, device: int = 0) -> Probe:
    """Map a page, write a pattern to all of it, read it back and unmap it."""
    probe = _probe_host if driver == "host" else _probe_cuda
    try:
        return Probe(driver, page_size, probe(driver, page_size, device))
    except (Error, OSError, RuntimeError) as error:
        return Probe(driver, page_size, f"{type(error).__name__}: {error}")


def _probe_host(name: str, page_size: int, device: int) -> str | None:
    """Go through the driver itself, so that no array library is needed."""
    import ctypes

    from pyvattn import _native

    driver = _native.make_driver(name, page_size, device)
    address = driver.reserve(page_size, page_size)
    slab = driver.allocate_slab(page_size)
    page = _native.MapEntry(address, page_size, slab, 0)
    driver.map([page])
    ctypes.memset(address, _PATTERN, page_size)
    written = ctypes.string_at(address, page_size)
    driver.unmap([page])
    after = ctypes.string_at(address, page_size) if driver.capabilities.zero_backed else b""
    driver.free_slab(slab)
    driver.release_reservation(address)
    if written != bytes([_PATTERN]) * page_size:
        return "what was written did not come back"
    if any(after):
        return "the page is still there after it was unmapped"
    return None


def _probe_cuda(name: str, page_size: int, device: int) -> str | None:
    """Go through a cache of one page for K and one for V."""
    import warnings

    from pyvattn.cache import KVCache
    from pyvattn.errors import PlanWarning
    from pyvattn.spec import CacheSpec

    # The page is to work; what a planner thinks of it does not matter here.
    warnings.simplefilter("ignore", PlanWarning)
    tokens = 64
    spec = CacheSpec(
        1, 1, page_size // tokens // 4, "float32", max_slots=1, max_tokens=tokens, guard_tokens=0
    )
    with KVCache(
        spec,
        device=f"cuda:{device}",
        driver=name,
        page_size=page_size,
        layout="layer",
        memory=16 * page_size,
        background=False,
    ) as cache:
        slot = cache.acquire(tokens)
        cache.step({slot: tokens})
        for tensor in cache.layer(0):
            tensor[0].fill_(1.5)
            if not bool((tensor[0] == 1.5).all()):
                return "what was written did not come back"
        cache.release(slot)
    return None
