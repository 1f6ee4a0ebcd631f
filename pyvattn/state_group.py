# SPDX-License-Identifier: Apache-2.0
"""Layers that keep a state of fixed size for each request: Mamba, linear attention and such."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from pyvattn.dtypes import ITEMSIZE, dtype_name
from pyvattn.errors import SpecError
from pyvattn.layer_group import layer_numbers
from pyvattn.text import shown
from pyvattn.whole_numbers import whole_number

Tensors = Mapping[str, tuple[Sequence[int], str]]
"""The shape of each tensor of a request's state in one layer, and its dtype."""


@dataclass(frozen=True)
class StateGroup:
    """Layers whose states are alike, in tensors with a shape and a dtype each.

    ``layers`` are their numbers among the layers that keep a state, from 0: a layer may keep K
    and V as well. ``copies`` of each state are held, such as one more for each drafted token.

    Raises :class:`~pyvattn.errors.SpecError` at once for an impossible group.
    """

    layers: Sequence[int]
    tensors: Tensors = field(hash=False)
    copies: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", layer_numbers("StateGroup", self.layers))
        if not isinstance(self.tensors, Mapping) or not self.tensors:
            raise SpecError(
                f"tensors={shown(self.tensors)} of a StateGroup: use a dict such as "
                "{'conv': ((3, 8192), 'bfloat16')}"
            )
        taken = {_name(name): _tensor(name, value) for name, value in self.tensors.items()}
        object.__setattr__(self, "tensors", taken)
        copies = whole_number(self.copies)
        if copies is None or copies < 1:
            raise SpecError(f"copies={shown(self.copies)} of a StateGroup: use a number from 1")
        object.__setattr__(self, "copies", copies)

    @property
    def layer_bytes(self) -> int:
        """Bytes of one layer's state, once."""
        return sum(prod(shape) * ITEMSIZE[dtype] for shape, dtype in self.tensors.values())

    def shard(self, ranks: int) -> StateGroup:
        """Return the group of one of ``ranks`` tensor-parallel ranks.

        Heads are divided, the first of three or more dimensions, and the channels of a
        convolution, the last of fewer. Raises :class:`~pyvattn.errors.SpecError` where that
        leaves a rest.
        """
        number = whole_number(ranks)
        if number is None or number < 1:
            raise SpecError(f"ranks={shown(ranks)}: use a whole number from 1")
        divided = {}
        for name, (shape, dtype) in self.tensors.items():
            axis = 0 if len(shape) > 2 else len(shape) - 1
            if shape[axis] % number:
                raise SpecError(
                    f"{shown(name)} of {list(shape)} cannot be divided over {number} ranks: give "
                    "the states of a rank by hand"
                )
            sizes = [*shape[:axis], shape[axis] // number, *shape[axis + 1 :]]
            divided[name] = (sizes, dtype)
        return replace(self, tensors=divided)

    @property
    def bytes(self) -> int:
        """Bytes of a request's states in all layers, copies included."""
        return len(self.layers) * self.layer_bytes * self.copies


def _name(name: object) -> str:
    if not isinstance(name, str) or not name:
        raise SpecError(f"tensors of a StateGroup: {shown(name)} is no name")
    return name


def _tensor(name: str, value: Any) -> tuple[tuple[int, ...], str]:
    try:
        shape, dtype = value
        sizes = [whole_number(size) for size in shape]
    except (TypeError, ValueError):
        sizes, dtype = [None], None
    if not sizes or any(size is None or size < 1 for size in sizes):
        raise SpecError(
            f"tensors of a StateGroup: {shown(name)} is {shown(value)}: use a shape and a dtype, "
            "such as ((3, 8192), 'bfloat16')"
        )
    return tuple(size for size in sizes if size is not None), dtype_name(dtype)


def check_states(states: object) -> tuple[StateGroup, ...]:
    """Return ``states`` as a tuple in which every layer from 0 on stands once.

    Raises :class:`~pyvattn.errors.SpecError` for anything else.
    """
    if not isinstance(states, Iterable) or isinstance(states, (str, bytes, Mapping)):
        raise SpecError(f"states={shown(states)}: use a list of StateGroup")
    groups = tuple(states)
    for group in groups:
        if not isinstance(group, StateGroup):
            raise SpecError(f"states: {shown(group)} is not a StateGroup")
    numbers = sorted(layer for group in groups for layer in group.layers)
    if numbers != list(range(len(numbers))):
        raise SpecError(
            f"layers of StateGroups are {shown(numbers)}: name each layer that keeps a state once, "
            f"from 0 to {len(numbers) - 1}"
        )
    return groups
