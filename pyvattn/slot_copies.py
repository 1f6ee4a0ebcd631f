# SPDX-License-Identifier: Apache-2.0
"""Copies of a slot's tokens: in another slot of the cache, in host memory, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from pyvattn import _native
from pyvattn._native import Slot
from pyvattn.arguments import check_type
from pyvattn.dropped import DroppedSlots
from pyvattn.errors import LengthError, UnsupportedError
from pyvattn.geometry import Geometry
from pyvattn.layers import LayerTensors
from pyvattn.nvtx import ranged
from pyvattn.opened import Opened
from pyvattn.state_rows import StateRows
from pyvattn.swap import Offloaded, byte_ranges, check_fits
from pyvattn.text import shown
from pyvattn.whole_numbers import whole_number

_T = TypeVar("_T")


class CopiesSlots(Opened):
    """What a cache does with a slot as a whole."""

    _native: _native.Cache
    _dropped: DroppedSlots
    _tensors: LayerTensors
    _states: StateRows | None

    def admit(self, tokens: int) -> Slot:
        """Acquire a slot and back its first tokens, both or neither."""
        raise NotImplementedError

    def release(self, slot: Slot, after: object = None) -> None:
        """End a request."""
        raise NotImplementedError

    def _with_room(self, call: Callable[..., _T], *arguments: Any) -> _T:
        """Make a call again once keepers gave up what they hold, where it finds no room."""
        raise NotImplementedError

    @ranged("pyvattn.fork")
    def fork(self, slot: Slot, tokens: int | None = None) -> Slot:
        """Return a slot that begins with the first ``tokens`` tokens of ``slot``, by default all.

        Whole pages are shared, whatever their number, and cost one map call for each run; the
        rest, less than a page in each arena, and whatever lies in rings, is copied: on a GPU on
        the stream that torch is using in this thread, so let that wait for whatever writes those
        tokens. The two grow apart, and either may be released first.

        The states of ``slot`` are copied whole, and it has no earlier ones: with states ``tokens``
        are all of them, or none.

        While tokens are shared nobody writes them: a :meth:`pyvattn.KVCache.step` or
        :meth:`pyvattn.KVCache.trim` to less than what whole pages hold of them is a
        :class:`~pyvattn.errors.LengthError`, for both slots, until their release. Raises what
        :meth:`pyvattn.KVCache.admit` raises, and
        :class:`~pyvattn.errors.SlotError`, with nothing changed.
        """
        self._dropped.recover()
        count = self._native.length(slot) if tokens is None else tokens
        fork, ranges = self._with_room(self._native.fork, slot, count)
        lacking = any(first < end for first, end in ranges)
        if lacking and self.driver != "host-accounting":
            try:
                self._tensors.copy(slot.index, fork.index, ranges)
            except BaseException:
                self._native.release(fork)
                raise
        return fork

    @ranged("pyvattn.copy_out")
    def offload(self, slot: Slot, tokens: int | None = None) -> Offloaded:
        """Copy the first ``tokens`` tokens of a slot to host memory, by default all.

        For :meth:`restore`; the slot stays as it is.
        One copy for each arena: a row is contiguous. On a GPU they go into pinned memory, on
        the stream that torch is using in this thread, and this returns before they are done.
        Let that stream wait for whatever writes those tokens. A :meth:`pyvattn.KVCache.release`
        from the same stream waits for the copies by itself.

        Raises :class:`~pyvattn.errors.SlotError`, :class:`~pyvattn.errors.LengthError` for more
        tokens than the slot has, fewer than windows have left behind or, with states, any but all
        of them, :class:`~pyvattn.errors.OutOfMemory` where the host has no such memory,
        :class:`~pyvattn.errors.MissingDependency` without torch, and
        :class:`~pyvattn.errors.UnsupportedError` with ``accounting``.
        """
        if self.driver == "host-accounting":
            raise UnsupportedError("accounting=True has no memory to copy: open the cache without")
        length = self._native.length(slot)
        held = zip(self._geometries, self._native.fronts(slot), strict=True)
        fronts = tuple(_first_held(geometry, front, length) for geometry, front in held)
        count = length if tokens is None else whole_number(tokens)
        if count is None or not max(fronts) <= count <= length:
            raise LengthError(
                f"tokens={shown(tokens)}: {slot} has {max(fronts)} to {length} to copy"
            )
        ranges = byte_ranges(self._geometries, fronts, count)
        if self._states is not None:
            ranges.append((0, self._states_to_copy(slot, count, length)))
        data = self._tensors.to_host(slot.index, ranges)
        sizes = tuple(geometry.token_bytes for geometry in self._geometries)
        return Offloaded(count, fronts, sizes, data, self._fence(None), self._state_bytes)

    @ranged("pyvattn.restore")
    def restore(self, offloaded: Offloaded) -> Slot:
        """Return a new slot with the tokens that :meth:`offload` copied, as often as you like.

        Copies as :meth:`offload` does: launch what reads the tokens on the same stream. What was
        left behind by windows is backed while this runs, and goes back then. Raises
        what :meth:`pyvattn.KVCache.admit` raises, with nothing changed, and
        :class:`~pyvattn.errors.TensorError` where the cache has another layout.
        """
        check_type("offloaded", offloaded, Offloaded)
        check_fits(offloaded, self.geometries, self._states)
        slot = self.admit(offloaded.length)
        try:
            self._refill(slot, offloaded, 0)
            if any(offloaded.fronts):
                self._native.trim_fronts(slot, list(offloaded.fronts), self._fence(None))
        except BaseException:
            self.release(slot)
            raise
        return slot

    @ranged("pyvattn.copy_in")
    def _refill(self, slot: Slot, offloaded: Offloaded, first: int) -> None:
        """Copy the offloaded tokens from ``first`` on to a slot that has them backed."""
        # Another stream may have been in use when they were copied.
        if offloaded.fence is not None:
            offloaded.fence.wait()
        pairs = zip(self._geometries, offloaded.fronts, strict=True)
        places = [
            (each.place_of(front) * each.token_bytes, max(0, first - front) * each.token_bytes)
            for each, front in pairs
        ]
        if self._states is not None:
            places.append((0, 0))
        self._tensors.from_host(offloaded.data, slot.index, places)

    @property
    def _state_bytes(self) -> int:
        return self._states.bytes if self._states is not None else 0

    def _states_to_copy(self, slot: Slot, tokens: int, length: int) -> int:
        """Return the bytes of the states that belong to so many tokens of a slot."""
        if 0 < tokens < length:
            raise LengthError(
                f"tokens={tokens}: {slot} has states, which have seen all of its {length} tokens: "
                "copy all of these"
            )
        return self._state_bytes if tokens else 0


def _first_held(geometry: Geometry, front: int, length: int) -> int:
    """Return the first token of a row that is there: a ring holds the last ones alone."""
    return max(front, length - geometry.ring_tokens) if geometry.ring_tokens else front
