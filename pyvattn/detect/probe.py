"""Proves a page size of a driver: maps one page, writes, reads back, unmaps."""

from __future__ import annotations

from dataclasses import dataclass

from pyvattn.errors import Error
from pyvattn.spec import CacheSpec


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
    try:
        return Probe(driver, page_size, _failure(driver, page_size, device))
    except (Error, OSError, RuntimeError) as error:
        return Probe(driver, page_size, f"{type(error).__name__}: {error}")
