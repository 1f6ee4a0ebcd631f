# SPDX-License-Identifier: Apache-2.0
"""Layers of a model that are alike: what they keep of a token, and for how long."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pyvattn.errors import SpecError
from pyvattn.text import shown
from pyvattn.whole_numbers import whole_number

# Refused before they are listed: a range can name more than fits in memory.
_MOST_LAYERS = 1 << 16


@dataclass(frozen=True)
class LayerGroup:
    """Layers with K and V of one shape, which keep their tokens equally long.

    ``layers`` are their numbers among the layers of the model that keep K and V, from 0:
    what :meth:`pyvattn.KVCache.layer` takes. With ``window`` a layer needs no more than the
    last so many tokens, the newest among them, as in transformers' ``sliding_window``; what
    lies before is given back. ``guard_tokens`` is the tail guard of these layers' kernels,
    by default that of the spec.

    Raises :class:`~pyvattn.errors.SpecError` at once for an impossible group.
    """

    layers: Sequence[int]
    kv_heads: int
    head_dim: int
    window: int | None = None
    guard_tokens: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", _layer_numbers(self.layers))
        for name in ("kv_heads", "head_dim"):
            self._check_count(name, minimum=1)
        if self.window is not None:
            self._check_count("window", minimum=1)
        if self.guard_tokens is not None:
            self._check_count("guard_tokens", minimum=0)

    def _check_count(self, name: str, minimum: int) -> None:
        value = getattr(self, name)
        count = whole_number(value)
        if count is None or count < minimum:
            raise SpecError(
                f"{name}={shown(value)} of a LayerGroup: use a whole number from {minimum}"
            )
        object.__setattr__(self, name, count)

    @property
    def shape(self) -> tuple[int, int]:
        """KV heads, and elements of one."""
        return self.kv_heads, self.head_dim


def _layer_numbers(layers: object) -> tuple[int, ...]:
    too_many = isinstance(layers, range) and len(layers) > _MOST_LAYERS
    if too_many or not isinstance(layers, Iterable) or isinstance(layers, (str, bytes)):
        raise SpecError(f"layers={shown(layers)} of a LayerGroup: use numbers, such as range(0, 6)")
    numbers = [whole_number(layer) for layer in layers]
    if not numbers:
        raise SpecError("layers=() of a LayerGroup: name one layer at least")
    if bad := [shown(n) for n, number in zip(layers, numbers, strict=True) if number is None]:
        raise SpecError(f"layers of a LayerGroup: {bad[0]} is not a whole number")
    return tuple(number for number in numbers if number is not None)


def check_groups(groups: object) -> tuple[LayerGroup, ...]:
    """Return ``groups`` as a tuple in which every layer from 0 on stands once.

    Raises :class:`~pyvattn.errors.SpecError` for what is no list of groups, for layers that
    are named twice and for those that are in no group.
    """
    if not isinstance(groups, Sequence) or isinstance(groups, (str, bytes)):
        raise SpecError(f"groups={shown(groups)}: use a list of LayerGroup")
    for group in groups:
        if not isinstance(group, LayerGroup):
            raise SpecError(f"groups: {shown(group)} is not a LayerGroup")
    numbers = sorted(layer for group in groups for layer in group.layers)
    for place, layer in enumerate(numbers):
        if place and layer == numbers[place - 1]:
            raise SpecError(f"layer {shown(layer)} is in several groups: name it in one")
        if layer != place:
            raise SpecError(
                f"layer {place} is in no group: number the layers that keep K and V from 0 to "
                f"{len(numbers) - 1}"
            )
    return tuple(groups)
