# SPDX-License-Identifier: Apache-2.0
"""Who holds slots of a cache for no request, and gives them up where requests need the room."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from pyvattn.errors import ArgumentError, OutOfMemory, OutOfSlots
from pyvattn.text import shown

_T = TypeVar("_T")


class Keeper(Protocol):
    """Holds slots of a cache for no request, as an index of prefixes does."""

    def give_up(self) -> bool:
        """Release a slot; ``False`` where none is held."""

    def kept_pages(self) -> int:
        """Return how many pages lie under the rows that are held."""


class Keepers:
    """The keepers of a cache, asked in the order in which they came."""

    def __init__(self) -> None:
        self._keepers: list[Keeper] = []

    def add(self, keeper: Keeper) -> None:
        """Ask ``keeper`` from now on; :class:`~pyvattn.errors.ArgumentError` for what is none."""
        for name in ("give_up", "kept_pages"):
            if isinstance(keeper, type) or not callable(getattr(keeper, name, None)):
                raise ArgumentError(f"keeper={shown(keeper)} has no {name}(): see pyvattn.prefix")
        self._keepers.append(keeper)

    def remove(self, keeper: Keeper) -> None:
        """Ask ``keeper`` no more."""
        self._keepers = [each for each in self._keepers if each is not keeper]

    def give_up(self) -> bool:
        """Have one slot released; ``False`` where none is held."""
        return any(keeper.give_up() for keeper in self._keepers)

    def kept_pages(self) -> int:
        """Return how many pages lie under the rows that are held."""
        return sum(keeper.kept_pages() for keeper in self._keepers)

    def retry(self, error: OutOfMemory | OutOfSlots, call: Callable[[], _T]) -> _T:
        """Call again for each slot that is given up; raise the last error where none is left."""
        while self.give_up():
            try:
                return call()
            except (OutOfMemory, OutOfSlots) as again:
                error = again
        raise error
