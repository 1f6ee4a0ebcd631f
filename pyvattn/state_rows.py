# SPDX-License-Identifier: Apache-2.0
"""Where the states of requests lie: side by side in one row of whole pages for each slot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING

from pyvattn.dtypes import ITEMSIZE
from pyvattn.state_group import StateGroup

if TYPE_CHECKING:
    from pyvattn.spec import CacheSpec

# Kernels read aligned vectors, as much as a GPU reads at once.
_ALIGNMENT = 128


@dataclass(frozen=True)
class StateView:
    """One tensor of one layer's state: where it lies in a row, and its shape and dtype there."""

    offset: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def strides(self) -> tuple[int, ...]:
        """Elements from one index to the next, in each dimension."""
        return tuple(prod(self.shape[i + 1 :]) for i in range(len(self.shape)))


@dataclass(frozen=True)
class StateRows:
    """The arena of states: a row for each slot, which holds all tensors of all layers.

    ``bytes`` of a row are used, and ``row_bytes`` are these in whole pages. ``views`` are by
    layer and name.
    """

    page_size: int
    slots: int
    bytes: int
    views: tuple[Mapping[str, StateView], ...]
    arenas: int = 1

    @property
    def row_bytes(self) -> int:
        """Bytes from one slot to the next."""
        return -(-self.bytes // self.page_size) * self.page_size

    @property
    def pages(self) -> int:
        """Pages that a request holds, whatever its length."""
        return self.row_bytes // self.page_size


def state_rows(spec: CacheSpec, page_size: int) -> StateRows | None:
    """Return where the states of ``spec`` lie in pages of so many bytes; ``None`` without any."""
    if not spec.states:
        return None
    views, size = _views(tuple(spec.states))
    return StateRows(page_size, spec.max_slots, size, views)


@lru_cache(maxsize=16)
def _views(groups: Sequence[StateGroup]) -> tuple[tuple[Mapping[str, StateView], ...], int]:
    """Return the views of each layer, and the bytes that they take."""
    found: dict[int, dict[str, StateView]] = {}
    end = 0
    for group in groups:
        copies = () if group.copies == 1 else (group.copies,)
        for layer in group.layers:
            found[layer] = {}
            for name, (shape, dtype) in group.tensors.items():
                view = StateView(end, (*copies, *shape), dtype)
                found[layer][name] = view
                size = prod(view.shape) * ITEMSIZE[dtype]
                end += -(-size // _ALIGNMENT) * _ALIGNMENT
    return tuple(found[layer] for layer in range(len(found))), end
