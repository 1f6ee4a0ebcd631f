# SPDX-License-Identifier: Apache-2.0
"""What a replay asks of an allocator, and the two that the cache is compared with."""

from __future__ import annotations

from array import array
from typing import Protocol, TypeVar

from pyvattn.arguments import check_type, check_whole
from pyvattn.errors import ArgumentError, ConfigError, OutOfMemory, OutOfSlots, SlotError
from pyvattn.samples import BLOCK_TOKENS, blocks_for
from pyvattn.spec import CacheSpec
from pyvattn.text import shown
from pyvattn.units import parse_size
from pyvattn.whole_numbers import whole_number

_Held = TypeVar("_Held")


class Allocator(Protocol):
    """Memory for requests that are named by small numbers, their rows.

    ``step`` backs every length or, with :class:`~pyvattn.errors.OutOfMemory`,
    changes nothing. Bytes: ``held_bytes`` belong to live requests;
    ``mapped_bytes`` also counts what is kept for the next ones.
    """

    @property
    def label(self) -> str:
        """The name for tables."""

    def can_admit(self, tokens: int) -> bool:
        """Return whether a request of ``tokens`` would find memory now."""

    def admit(self, tokens: int) -> int:
        """Return the row of a new request; its memory comes with a step."""

    def step(self, rows: array[int], lengths: array[int]) -> None:
        """Back ``lengths[i]`` tokens of ``rows[i]``; both are arrays of type ``q``."""

    def release(self, row: int) -> None:
        """End a request."""

    def memory(self) -> tuple[int, int]:
        """Return (held_bytes, mapped_bytes) as they are now."""

    def calls(self) -> tuple[int, int]:
        """Return (map calls, unmap calls) made to the driver so far."""

    def mean_extent_bytes(self) -> float:
        """Return the bytes that a map call covered on average; 0 where none was made."""

    def close(self) -> None:
        """Give everything back."""


class _BlockAllocator:
    """Blocks of equal size out of a fixed pool; a row holds as many as it needs."""

    name = "blocks"

    def __init__(self, spec: CacheSpec, memory_limit: int, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._block_bytes = block_tokens * spec.token_bytes
        self._free = self._blocks = parse_size(memory_limit, "memory") // self._block_bytes
        self._rows = list(range(spec.max_slots))[::-1]
        self._held: dict[int, int] = {}
        if not self._blocks:
            raise ConfigError(
                f"{self.label} allocation needs at least {self._block_bytes} bytes of memory, "
                f"not {memory_limit}"
            )

    @property
    def label(self) -> str:
        """The name for tables."""
        return self.name

    def can_admit(self, tokens: int) -> bool:
        """Return whether there is a row, and blocks for ``tokens``."""
        blocks = blocks_for(check_whole("tokens", tokens), self._block_tokens)
        return bool(self._rows) and blocks <= self._free

    def admit(self, tokens: int) -> int:
        """Take a row; its blocks come with a step."""
        check_whole("tokens", tokens)
        if not self._rows:
            raise OutOfSlots(f"all {len(self._held)} rows are live: release one")
        row = self._rows.pop()
        self._held[row] = 0
        return row

    def step(self, rows: array[int], lengths: array[int]) -> None:
        """Give every row the blocks of its length, or none any."""
        for name, given in (("rows", rows), ("lengths", lengths)):
            if not isinstance(given, array) or len(given) != len(rows):
                raise ArgumentError(f"{name}={shown(given)}: pass two arrays of the same size")
        size, held = self._block_tokens, self._held
        missing = {}
        for row, length in zip(rows, lengths, strict=True):
            blocks = blocks_for(length, size)
            if row not in held:
                raise _not_live(row)
            if blocks > held[row]:
                missing[row] = blocks
        wanted = sum(blocks - held[row] for row, blocks in missing.items())
        if wanted > self._free:
            raise OutOfMemory(
                f"{wanted} blocks are needed and {self._free} are free",
                wanted * self._block_bytes,
                self._free * self._block_bytes,
            )
        self._free -= wanted
        held.update(missing)

    def release(self, row: int) -> None:
        """Take the row and its blocks back."""
        self._free += pop_live(self._held, row)
        self._rows.append(row)

    def memory(self) -> tuple[int, int]:
        """Return the bytes of all blocks taken, twice: none are kept for later."""
        held = (self._blocks - self._free) * self._block_bytes
        return held, held

    def calls(self) -> tuple[int, int]:
        """Return zeros: no driver is called."""
        return 0, 0

    def mean_extent_bytes(self) -> float:
        """Return 0.0: nothing is mapped."""
        return 0.0

    def close(self) -> None:
        """Forget every row."""
        self._held.clear()


def pop_live(rows: dict[int, _Held], row: int) -> _Held:
    """Take ``row`` out of ``rows``, or raise :class:`~pyvattn.errors.SlotError`."""
    number = whole_number(row)
    if number not in rows:
        raise _not_live(row)
    return rows.pop(number)


def _not_live(row: object) -> SlotError:
    return SlotError(f"row {shown(row)} is not live: name what admit() returned, until its release")


class StaticAllocator(_BlockAllocator):
    """Every request gets room for ``max_tokens`` when it joins."""

    name = "static"

    def __init__(self, spec: CacheSpec, memory_limit: int) -> None:
        check_type("spec", spec, CacheSpec)
        super().__init__(spec, memory_limit, spec.max_tokens)


class PagedAllocator(_BlockAllocator):
    """Small blocks, as paged attention has them."""

    name = f"paged, {BLOCK_TOKENS} tokens"

    def __init__(self, spec: CacheSpec, memory_limit: int) -> None:
        check_type("spec", spec, CacheSpec)
        super().__init__(spec, memory_limit, BLOCK_TOKENS)
