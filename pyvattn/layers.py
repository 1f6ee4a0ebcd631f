# SPDX-License-Identifier: Apache-2.0
"""The tensors of a cache's layers, and of its states, made through DLPack."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import accumulate, islice
from typing import Any, Protocol

from pyvattn import _native
from pyvattn.arguments import check_callable
from pyvattn.dtypes import ITEMSIZE
from pyvattn.errors import ArgumentError, LayerError, OutOfMemory
from pyvattn.geometry import Geometry, LayerViews, TensorView
from pyvattn.gpu_link import GpuLink
from pyvattn.spec import CacheSpec
from pyvattn.state_rows import StateRows
from pyvattn.text import shown
from pyvattn.units import format_size
from pyvattn.whole_numbers import whole_number

# Consumers know no common DLPack code for these: they travel as bytes.
_AS_BYTES = ("float8_e4m3fn", "float8_e5m2")


class Viewed(Protocol):
    """What has arenas: the core of a cache, or of a row map."""

    @property
    def inherited(self) -> bool:
        """True in a child process that got it through fork()."""

    def view(
        self,
        arena: int,
        offset: int,
        shape: Sequence[int],
        strides: Sequence[int],
        dtype: str,
    ) -> _native.TensorView:
        """Return a strided view of an arena: offset in bytes, strides in elements."""


class LayerTensors:
    """K and V of every layer, and the states, as whatever array library wants them."""

    def __init__(
        self,
        native: Viewed,
        spec: CacheSpec,
        geometries: Sequence[Geometry],
        states: StateRows | None = None,
    ) -> None:
        self._native = native
        self._spec = spec
        self._geometries = geometries
        self._states = states
        # The arenas of a group follow those of the groups before it; that of states is the last.
        self._groups: list[Geometry | StateRows] = [*geometries, *([states] if states else [])]
        self._first_arena = list(accumulate((g.arenas for g in self._groups), initial=0))
        self._torch: dict[int, tuple[Any, Any]] = {}
        self._torch_states: dict[int, dict[str, Any]] = {}
        self._bytes: list[Any] = []

    def of_torch(self, index: int) -> tuple[Any, Any]:
        """Return torch tensors that share memory with those of every other caller."""
        layer = self._number(index)
        # Kernels ask for a layer at every step, and making tensors takes longer than that.
        made = self._torch.get(layer)
        if made is None or self._native.inherited:
            made = self._whole_rows(layer)
            self._torch[layer] = made
        k, v = made
        # Transposing one in place leaves the others as they are.
        return k.detach(), v.detach()

    def made_by(self, index: int, from_dlpack: Callable[[Any], Any]) -> tuple[Any, Any]:
        """Return what ``from_dlpack`` makes of K and of V."""
        check_callable("from_dlpack", from_dlpack)
        return self._make(self._number(index), from_dlpack)

    def state_of_torch(self, index: int) -> dict[str, Any]:
        """Return torch tensors of one layer's states, by name, that share memory with others."""
        layer = self._state_number(index)
        made = self._torch_states.get(layer)
        if made is None or self._native.inherited:
            made = self._torch_states[layer] = self._make_state(layer, None)
        return {name: tensor.detach() for name, tensor in made.items()}

    def state_made_by(self, index: int, from_dlpack: Callable[[Any], Any]) -> dict[str, Any]:
        """Return what ``from_dlpack`` makes of one layer's states, by name."""
        check_callable("from_dlpack", from_dlpack)
        return self._make_state(self._state_number(index), from_dlpack)

    def arena(self, index: int, from_dlpack: Callable[[Any], Any] | None) -> Any:
        """Return the bytes of one arena, ``[max_slots, row_bytes]``, by default for torch."""
        check_callable("from_dlpack", from_dlpack)
        arenas = self._first_arena[-1]
        number = whole_number(index)
        if number is None or not 0 <= number < arenas:
            raise ArgumentError(f"arena {shown(index)}: use a whole number from 0 to {arenas - 1}")
        group = self._groups[bisect_right(self._first_arena, number) - 1]
        slots, row_bytes = group.slots, group.row_bytes
        view = self._native.view(number, 0, (slots, row_bytes), (row_bytes, 1), "uint8")
        return (from_dlpack or _torch_from_dlpack("uint8"))(view)

    def views(self, row: int, ranges: Sequence[tuple[int, int]]) -> tuple[tuple[Any, ...], ...]:
        """Return bytes ``[first, end)`` of a row in every arena: a range for those of a group."""
        arenas = iter(self._arenas())
        return tuple(
            tuple(arena[row, first:end] for arena in islice(arenas, group.arenas))
            for group, (first, end) in zip(self._groups, ranges, strict=True)
        )

    def copy(self, source: int, target: int, ranges: Sequence[tuple[int, int]]) -> None:
        """Copy bytes ``[first, end)`` of one row to another: a range for the arenas of a group."""
        pairs = zip(self.views(target, ranges), self.views(source, ranges), strict=True)
        for there, here in pairs:
            for target_bytes, source_bytes in zip(there, here, strict=True):
                target_bytes.copy_(source_bytes)

    def to_host(self, row: int, ranges: Sequence[tuple[int, int]]) -> tuple[Any, ...]:
        """Return bytes ``[first, end)`` of a row on their way to the host: a range for each group.

        ``[arenas, bytes]`` of every group. One copy for each arena, on a GPU into pinned memory
        and on torch's stream. Raises :class:`~pyvattn.errors.OutOfMemory` where there is none.
        """
        on_gpu = self._arenas()[0].is_cuda
        copies = []
        for views, (first, end) in zip(self.views(row, ranges), ranges, strict=True):
            copies.append(_host_bytes(len(views), end - first, pinned=on_gpu))
            for copy, view in zip(copies[-1], views, strict=True):
                copy.copy_(view, non_blocking=on_gpu)
        return tuple(copies)

    def fill(
        self,
        sources: Sequence[Any],
        row: int,
        group: int,
        arenas: range,
        place: tuple[int, int, int],
        peers: Collection[str],
    ) -> None:
        """Copy some of a group that :meth:`to_host` or another cache's :meth:`views` returned.

        To those of its arenas, of one row. ``place`` is the byte where the group's range began in
        the row, and the bytes ``[first, end)`` of it to copy; what lies past its end is not there.
        Of the GPUs, this one and ``peers`` can write to the row.
        """
        begin, first, end = place
        with self._link_for(sources[arenas.start : arenas.stop], peers) as link:
            for index in arenas:
                source, arena = sources[index], self._arenas()[self._first_arena[group] + index]
                stop = min(end, len(source))
                if first >= stop:
                    continue
                there, values = arena[row, begin + first : begin + stop], source[first:stop]
                if link is None:
                    there.copy_(values, non_blocking=there.is_cuda)
                else:
                    link.copy(there, values)

    def _link_for(
        self, sources: Sequence[Any], peers: Collection[str]
    ) -> AbstractContextManager[GpuLink | None]:
        """Return what copies from another GPU, which can write here if it is one of ``peers``."""
        target = self._arenas()[0].device
        source = sources[0].device
        if source.type != "cuda" or source == target:
            return nullcontext()
        return GpuLink(source, target, max(map(len, sources)), staged=str(source) not in peers)

    def _arenas(self) -> list[Any]:
        if not self._bytes:
            self._bytes = [self.arena(index, None) for index in range(self._first_arena[-1])]
        return self._bytes

    def forget(self) -> None:
        """Drop the tensors that are kept for later calls."""
        self._torch.clear()
        self._torch_states.clear()
        self._bytes.clear()

    def _whole_rows(self, layer: int) -> tuple[Any, Any]:
        """Return torch tensors whose storage goes on to the end of the last row.

        So that all rows can be seen as whole blocks, as paged kernels want them.
        """
        group, _ = self._spec.group_of(layer)
        geometry = self._geometries[group]
        tokens = geometry.row_bytes // geometry.token_bytes
        k, v = self._make(layer, _torch_from_dlpack(self._spec.dtype), tokens)
        return k[:, : geometry.max_tokens], v[:, : geometry.max_tokens]

    def _make(
        self, layer: int, make: Callable[[Any], Any], tokens: int | None = None
    ) -> tuple[Any, Any]:
        """Return K and V of ``tokens`` tokens of each row, by default as many as requests have."""
        group, place = self._spec.group_of(layer)
        views, first = self._geometries[group].views[place], self._first_arena[group]
        if tokens is not None:
            views = LayerViews(_of_tokens(views.k, tokens), _of_tokens(views.v, tokens))
        return make(self._dlpack(views.k, first)), make(self._dlpack(views.v, first))

    def _make_state(self, layer: int, make: Callable[[Any], Any] | None) -> dict[str, Any]:
        assert self._states is not None
        made = {}
        for name, view in self._states.views[layer].items():
            shape = (self._states.slots, *view.shape)
            strides = (self._states.row_bytes // ITEMSIZE[view.dtype], *view.strides)
            dtype = "uint8" if view.dtype in _AS_BYTES else view.dtype
            arena = self._first_arena[-2]
            seen = self._native.view(arena, view.offset, shape, strides, dtype)
            made[name] = (make or _torch_from_dlpack(view.dtype))(seen)
        return made

    def _state_number(self, index: int) -> int:
        if self._states is None:
            raise LayerError(
                "no layer of the spec keeps a state: give CacheSpec a StateGroup for those that do"
            )
        return _number("state of layer", index, len(self._states.views))

    def _number(self, index: int) -> int:
        return _number("layer", index, self._spec.layers)

    def _dlpack(self, view: TensorView, first_arena: int) -> _native.TensorView:
        dtype = "uint8" if self._spec.dtype in _AS_BYTES else self._spec.dtype
        arena = first_arena + view.arena
        return self._native.view(arena, view.offset, view.shape, view.strides, dtype)


def _number(what: str, index: object, layers: int) -> int:
    number = whole_number(index)
    if number is None:
        raise ArgumentError(f"{what} {shown(index)}: use a whole number from 0 to {layers - 1}")
    if not -layers <= number < layers:
        raise LayerError(f"{what} {shown(number)} is outside 0..{layers - 1}")
    return number % layers


def _of_tokens(view: TensorView, tokens: int) -> TensorView:
    slots, _, heads, dim = view.shape
    return replace(view, shape=(slots, tokens, heads, dim))


def _host_bytes(arenas: int, size: int, pinned: bool) -> Any:
    import torch

    try:
        return torch.empty((arenas, size), dtype=torch.uint8, pin_memory=pinned)
    except RuntimeError as error:  # which torch raises for the host's memory
        kind = "pinned host memory" if pinned else "host memory"
        raise OutOfMemory(
            f"there is no {kind} for {format_size(arenas * size)} of tokens: free some, or let "
            "them be computed anew",
            requested=arenas * size,
        ) from error


def _torch_from_dlpack(dtype: str) -> Callable[[Any], Any]:
    try:
        import torch
        from torch.utils.dlpack import from_dlpack
    except ImportError as error:
        from pyvattn.errors import MissingDependency

        raise MissingDependency(
            "KVCache.layer() makes torch tensors by default: pip install 'pyvattn[torch]', or "
            "pass from_dlpack=numpy.from_dlpack"
        ) from error

    def make(view: Any) -> Any:
        # The tensor outlives a caller's inference mode, after which nobody could write to it.
        with torch.inference_mode(False):
            made = from_dlpack(view)
            return made.view(getattr(torch, dtype)) if dtype in _AS_BYTES else made

    return make
