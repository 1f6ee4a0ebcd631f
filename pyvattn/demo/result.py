# SPDX-License-Identifier: Apache-2.0
"""The figures that a demo run comes to."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pyvattn.machine import describe_machine, describe_run
from pyvattn.samples import Sample

if TYPE_CHECKING:
    from pyvattn.cache import KVCache


@dataclass(frozen=True)
class Answer:
    """One prompt and what the model said; ``matches`` is ``None`` where nothing was checked."""

    title: str
    prompt_tokens: int
    text: str
    tokens: list[int]
    matches: bool | None


@dataclass(frozen=True)
class CacheFigures:
    """What a cache did, from :meth:`pyvattn.KVCache.stats`; sizes in bytes, times in seconds."""

    driver: str
    page_size: int
    layout: str
    reserved: int
    map_calls: int
    unmap_calls: int
    map_seconds_blocking: float
    map_seconds_hidden: float

    @classmethod
    def of(cls, cache: KVCache) -> CacheFigures:
        """Read them from ``cache``."""
        stats = cache.stats()
        return cls(
            driver=cache.driver,
            page_size=stats.page_size,
            layout=cache.layout,
            reserved=stats.bytes_reserved,
            map_calls=stats.map_calls,
            unmap_calls=stats.unmap_calls,
            map_seconds_blocking=stats.map_seconds_blocking,
            map_seconds_hidden=stats.map_seconds_hidden,
        )


@dataclass(frozen=True)
class DemoResult:
    """A whole run: sizes in bytes, times in seconds.

    ``static`` is what a static cache holds for the same requests: a row of the
    ``longest`` one for every slot.
    """

    slots: int
    longest: int
    static: int
    cache: CacheFigures
    answers: list[Answer]
    samples: list[Sample]
    load_seconds: float
    serve_seconds: float
    check_seconds: float | None

    @property
    def mapped_peak(self) -> int:
        """The most that was mapped after any step."""
        return max(sample.mapped for sample in self.samples)

    @property
    def live_peak(self) -> int:
        """The most that was mapped under running requests."""
        return max(sample.held for sample in self.samples)

    @property
    def used_peak(self) -> int:
        """The most that live tokens took."""
        return max(sample.used for sample in self.samples)

    @property
    def paged_peak(self) -> int:
        """The most that a 16-token paged cache would have held."""
        return max(sample.paged or 0 for sample in self.samples)

    @property
    def steps(self) -> int:
        """Iterations of the engine."""
        return len(self.samples) - 1

    @property
    def new_tokens(self) -> int:
        """All tokens that were generated."""
        return sum(len(answer.tokens) for answer in self.answers)

    def as_dict(self) -> dict[str, Any]:
        """Return everything in the form that JSON holds, with the machine and the command."""
        derived = ("mapped_peak", "live_peak", "used_peak", "paged_peak", "steps", "new_tokens")
        return {
            **describe_run(),
            "machine": describe_machine(),
            **asdict(self),
            **{name: getattr(self, name) for name in derived},
        }
