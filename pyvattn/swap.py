# SPDX-License-Identifier: Apache-2.0
"""A slot's bytes, where they lie and in host memory: what ``KVCache.restore`` takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pyvattn._native import Fence
from pyvattn.errors import TensorError
from pyvattn.geometry import Geometry
from pyvattn.state_rows import StateRows
from pyvattn.text import shown
from pyvattn.whole_numbers import whole_number

__all__ = ["Offloaded", "SlotHeader", "SlotViews"]


@dataclass(frozen=True)
class SlotHeader:
    """What has to be known of a slot's bytes before they come: numbers, as a message carries them.

    ``length`` tokens, and for each group of layers that are alike: the first ``fronts`` of them are
    not there, as nobody reads them any more, ``token_bytes`` are what each takes in an arena, and
    there are so many ``arenas``. States take ``state_bytes`` more, in an arena of their own.

    Raises :class:`~pyvattn.errors.TensorError` for numbers that no slot has.
    """

    length: int
    fronts: tuple[int, ...]
    token_bytes: tuple[int, ...]
    arenas: tuple[int, ...]
    state_bytes: int = 0

    def __post_init__(self) -> None:
        groups = (self.fronts, self.token_bytes, self.arenas)
        if not all(isinstance(each, tuple) for each in groups) or len({*map(len, groups)}) > 1:
            raise TensorError(
                f"{shown(groups)} is no header of a slot: give fronts, token_bytes and arenas, "
                "tuples with a number for each group"
            )
        for number in (
            self.length,
            *self.fronts,
            *self.token_bytes,
            *self.arenas,
            self.state_bytes,
        ):
            whole = whole_number(number)
            if whole is None or whole < 0:
                raise TensorError(f"{shown(number)} in a slot's header: use whole numbers from 0")
        if any(front > self.length for front in self.fronts):
            raise TensorError(f"fronts={shown(self.fronts)}: a slot has {self.length} tokens")

    @property
    def sizes(self) -> tuple[int, ...]:
        """Bytes in each arena, in the order in which :class:`SlotViews` has them."""
        groups = zip(self.fronts, self.token_bytes, self.arenas, strict=True)
        sizes = [
            (self.length - front) * token_bytes
            for front, token_bytes, arenas in groups
            for _ in range(arenas)
        ]
        states = [self.state_bytes if self.length else 0] if self.state_bytes else []
        return (*sizes, *states)

    @property
    def bytes(self) -> int:
        """Bytes in all arenas."""
        return sum(self.sizes)


@dataclass(frozen=True, eq=False)
class SlotViews:
    """A slot's bytes where they lie, in the cache's own memory, for transfers.

    ``data`` has for each group of layers that are alike, and last for the states, a dense tensor
    of bytes for each arena: a row is contiguous, however many pages lie under it.
    """

    header: SlotHeader
    data: tuple[tuple[Any, ...], ...]

    @property
    def views(self) -> tuple[Any, ...]:
        """All of them, one after the other: ``[bytes]`` each, as ``header.sizes`` says."""
        return tuple(view for group in self.data for view in group)


@dataclass(frozen=True, eq=False)
class Offloaded:
    """K and V of a slot's tokens in host memory, which goes with the last reference to this.

    ``length`` tokens. The rest is one for each group of layers that are alike: the first
    ``fronts`` of the tokens are not there, as nobody read them any more, ``token_bytes`` are what
    each takes in an arena, and ``data`` has them, ``[arenas, bytes]``. States of ``state_bytes``
    are the last of ``data``, ``[1, bytes]``.
    """

    length: int
    fronts: tuple[int, ...]
    token_bytes: tuple[int, ...]
    data: tuple[Any, ...]
    fence: Fence | None
    state_bytes: int = 0

    @property
    def header(self) -> SlotHeader:
        """What the bytes are of."""
        arenas = tuple(each.shape[0] for each in self.data[: len(self.token_bytes)])
        return SlotHeader(self.length, self.fronts, self.token_bytes, arenas, self.state_bytes)

    @property
    def bytes(self) -> int:
        """Bytes of host memory that it takes, in all arenas."""
        return sum(int(each.numel()) for each in self.data)

    @property
    def ready(self) -> bool:
        """Whether the copies to the host are done."""
        return self.fence is None or self.fence.passed()


def pinned_bytes(size: int) -> int:
    """Return what torch takes from the host for so many bytes of pinned memory: powers of two."""
    return 1 << (size - 1).bit_length() if size else 0


def check_fits(
    header: SlotHeader, geometries: Sequence[Geometry], states: StateRows | None
) -> None:
    """Raise :class:`~pyvattn.errors.TensorError` for a cache whose tokens lie otherwise."""
    kept = states.bytes if states is not None else 0
    if header.state_bytes != kept:
        raise TensorError(
            f"these tokens have states of {header.state_bytes} bytes, and in this cache they "
            f"take {kept}: restore them in one with the same spec"
        )
    had = list(zip(header.arenas, header.token_bytes, strict=True))
    has = [(geometry.arenas, geometry.token_bytes) for geometry in geometries]
    if had != has:
        there, here = (" and ".join(f"{n} of {size}" for n, size in each) for each in (had, has))
        raise TensorError(
            f"these tokens lie in arenas, {there} bytes a token, and this cache has {here}: "
            "restore them in one with the same spec and layout"
        )
    for front, geometry in zip(header.fronts, geometries, strict=True):
        held = header.length - front
        if geometry.ring_tokens and held > geometry.ring_tokens:
            raise TensorError(
                f"{held} tokens of layers with a window for rings of {geometry.ring_tokens}: "
                "restore them in a cache whose rings are as long as they were"
            )


def byte_ranges(
    geometries: Sequence[Geometry], fronts: Sequence[int], tokens: int
) -> list[tuple[int, int]]:
    """Return where a row's tokens up to ``tokens`` lie in the arenas of each group, in bytes."""
    ranges = []
    for geometry, front in zip(geometries, fronts, strict=True):
        first, size = geometry.place_of(front), geometry.token_bytes
        ranges.append((first * size, (first + tokens - front) * size))
    return ranges
