# SPDX-License-Identifier: Apache-2.0
"""Copies of a slot's tokens: in another slot, in host memory, in another cache, and back."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from pyvattn import _native
from pyvattn._native import Fence, Slot
from pyvattn.arguments import check_type
from pyvattn.dropped import DroppedSlots
from pyvattn.errors import LengthError, UnsupportedError
from pyvattn.geometry import Geometry
from pyvattn.layers import LayerTensors
from pyvattn.nvtx import ranged
from pyvattn.opened import Opened
from pyvattn.state_rows import StateRows
from pyvattn.swap import Offloaded, SlotHeader, SlotViews, byte_ranges, check_fits
from pyvattn.text import shown
from pyvattn.whole_numbers import whole_number

_T = TypeVar("_T")

# A restore maps in so many steps at most, each of so many bytes or more: what the first of them
# maps is what no copy hides.
_MOST_STEPS = 16
_LEAST_STEP = 16 << 20
# As many copies as that and no more, unless there are more arenas: a large one is as fast as any,
# and launching each takes the host as long as it takes a GPU to copy half a MiB.
_MOST_COPIES = 64


class CopiesSlots(Opened):
    """What a cache does with a slot as a whole."""

    _native: _native.Cache
    _dropped: DroppedSlots
    _tensors: LayerTensors
    _states: StateRows | None
    _has_windows: bool

    def acquire(self, tokens: int = 0) -> Slot:
        """Return a slot for a new request."""
        raise NotImplementedError

    def release(self, slot: Slot, after: object = None) -> None:
        """End a request."""
        raise NotImplementedError

    def _with_room(self, call: Callable[..., _T], *arguments: Any) -> _T:
        """Make a call again once keepers gave up what they hold, where it finds no room."""
        raise NotImplementedError

    def _pages_for(self, tokens: int) -> int:
        """Return the pages that so many tokens take."""
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
        return self._with_rest(fork, slot, ranges)

    def _snapshot(self, slot: Slot, tokens: int, written: int) -> Slot:
        """Return a fork of the first ``tokens`` tokens of ``slot``, which has ``written`` so far.

        No keeper gives up anything for it. States have seen these tokens and no others.
        """
        fork, ranges = self._native.snapshot(slot, tokens, written)
        return self._with_rest(fork, slot, ranges)

    def _with_rest(self, fork: Slot, slot: Slot, ranges: list[tuple[int, int]]) -> Slot:
        """Copy what a fork cannot share."""
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
        header, ranges = self._bytes_of(slot, tokens)
        data = self._tensors.to_host(slot.index, ranges)
        sizes, states = header.token_bytes, self._state_bytes
        return Offloaded(header.length, header.fronts, sizes, data, self._fence(None), states)

    def dense_views(self, slot: Slot, tokens: int | None = None) -> SlotViews:
        """Return the first ``tokens`` tokens of a slot where they lie, by default all.

        One dense tensor of bytes for each arena, whatever pages lie under it: what NCCL or another
        library of transfers sends in one piece. :meth:`restore` of another cache with the same
        spec and layout takes them, :meth:`admit_views` is for one in another process, and
        :mod:`pyvattn.transfers` sends and receives them with torch.distributed.

        They share memory with the cache and are good until the slot's release; what is sent from
        them on another stream than torch's needs that stream as its ``after``. Raises what
        :meth:`offload` raises.
        """
        header, ranges = self._bytes_of(slot, tokens)
        return SlotViews(header, self._tensors.views(slot.index, ranges))

    def admit_views(self, header: SlotHeader) -> tuple[Slot, SlotViews]:
        """Return a slot for tokens of another cache, all backed, and where their bytes go.

        ``header`` is that of :meth:`dense_views` there. Write all of the views, then use the slot;
        where that fails, release it. Raises what :meth:`restore` raises, with no slot taken.
        """
        check_type("header", header, SlotHeader)
        self._check_has_memory()
        check_fits(header, self.geometries, self._states)
        self._dropped.recover()
        slot = self._with_room(self._native.admit, header.length)
        try:
            self._leave_behind(slot, header)
            ranges = byte_ranges(self._geometries, header.fronts, header.length)
            if self._states is not None:
                ranges.append((0, header.state_bytes if header.length else 0))
            return slot, SlotViews(header, self._tensors.views(slot.index, ranges))
        except BaseException:
            self.release(slot)
            raise

    def _bytes_of(self, slot: Slot, tokens: int | None) -> tuple[SlotHeader, list[tuple[int, int]]]:
        """Return what a slot's first tokens take, and where they lie in each group's arenas."""
        self._check_has_memory()
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
        sizes = tuple(geometry.token_bytes for geometry in self._geometries)
        arenas = tuple(geometry.arenas for geometry in self._geometries)
        return SlotHeader(count, fronts, sizes, arenas, self._state_bytes), ranges

    def _check_has_memory(self) -> None:
        if self.driver == "host-accounting":
            raise UnsupportedError("accounting=True has no memory to copy: open the cache without")

    @ranged("pyvattn.restore")
    def restore(self, source: Offloaded | SlotViews) -> Slot:
        """Return a new slot with the tokens that :meth:`offload` copied, as often as you like.

        Or with those of another cache of the process, whose :meth:`dense_views` they are: a
        request moves to another GPU so. From a GPU that may not write here (:attr:`peers`), the
        bytes go by way of memory of torch's on this one.

        Copies as :meth:`offload` does: launch what reads the tokens on the same stream. Where
        much has to be mapped first, that is done step by step, and what one has mapped is copied
        while the next maps: some of the tokens in all arenas as long as that makes no more than 64
        copies, else, and with windows, all tokens in some of the arenas. What was left behind by
        windows is backed while this runs, and goes back then.

        Raises what :meth:`pyvattn.KVCache.admit` raises, and
        :class:`~pyvattn.errors.TensorError` where the cache has another layout. Then no slot is
        taken and ``source`` is as it was; pages that were mapped by then stay, as those of a
        :meth:`pyvattn.KVCache.release` do.
        """
        check_type("source", source, Offloaded, SlotViews)
        self._check_has_memory()
        header = source.header
        check_fits(header, self.geometries, self._states)
        slot = self.acquire(header.length)
        try:
            ends, arenas = self._steps(slot, header.length)
            for first, end in zip([0, *ends], ends, strict=False):
                copy = partial(self._copy_in, slot, source, first, end)
                self._with_room(self._native.extend, slot, end, arenas, copy)
            self._leave_behind(slot, header)
        except BaseException:
            self.release(slot)
            raise
        return slot

    def _leave_behind(self, slot: Slot, header: SlotHeader) -> None:
        """Give back what windows had left behind where the tokens come from."""
        if any(header.fronts):
            self._native.trim_fronts(slot, list(header.fronts), self._fence(None))

    def _steps(self, slot: Slot, tokens: int) -> tuple[list[int], int]:
        """Return up to which tokens a slot that gets ``tokens`` is mapped, and arenas at a time."""
        lacking = self._pages_for(tokens) - dict(self._native.live_pages())[slot]
        size = lacking * self._geometries[0].page_size
        steps = max(1, min(_MOST_STEPS, size // _LEAST_STEP))
        arenas = sum(geometry.arenas for geometry in self._geometries)
        copies = _MOST_COPIES - (self._states is not None)
        # A window would leave tokens behind that are yet to be copied.
        pieces = 1 if self._has_windows else max(1, min(steps, copies // arenas))
        parts = -(-steps // pieces)
        return [tokens * piece // pieces for piece in range(1, pieces + 1)], -(-arenas // parts)

    def _refill(self, slot: Slot, source: Offloaded | SlotViews, first: int) -> None:
        """Copy the tokens from ``first`` on to a slot that has them backed."""
        for group, copies in enumerate(source.data):
            self._copy_in(slot, source, first, source.header.length, group, 0, len(copies))

    @ranged("pyvattn.copy_in")
    def _copy_in(
        self,
        slot: Slot,
        source: Offloaded | SlotViews,
        first: int,
        end: int,
        group: int,
        first_arena: int,
        end_arena: int,
    ) -> Fence | None:
        """Copy the tokens ``[first, end)`` of some arenas of a group to a slot.

        It has them backed. States are copied with the last of the tokens. Returns what passes
        once they are there.
        """
        header = source.header
        # Another stream may have been in use when they were copied.
        if isinstance(source, Offloaded) and source.fence is not None:
            source.fence.wait()
        if group < len(self._geometries):
            geometry, front = self._geometries[group], header.fronts[group]
            size = geometry.token_bytes
            begin, stop = (max(0, token - front) * size for token in (first, end))
            place = (geometry.place_of(front) * size, begin, stop)
        else:
            place = (0, 0, self._state_bytes if end == header.length else 0)
        arenas = range(first_arena, end_arena)
        try:
            self._tensors.fill(source.data[group], slot.index, group, arenas, place, self.peers)
        except BaseException:
            # Those that were launched before: nobody else could wait for them.
            fence = self._fence(None)
            if fence is not None:
                fence.wait()
            raise
        return self._fence(None)

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
