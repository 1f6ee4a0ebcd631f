# SPDX-License-Identifier: Apache-2.0
"""Layers of a model that are alike: what they keep of a token, and for how long."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
    by default that of the spec. V is as wide as K, unless ``v_head_dim`` says otherwise.

    With ``latent_dim`` the layers keep one vector of ``head_dim`` elements for each token
    (multi-head latent attention), in one head: their V is its first ``latent_dim`` elements.

    With ``ring`` the pages of a window stay: a row is a ring of two windows, or of so many
    tokens, rounded up to whole pages, in which token ``p`` lies at ``p`` modulo its length.
    See :attr:`pyvattn.KVCache.chunk_tokens` for what that asks of long prompts.

    Raises :class:`~pyvattn.errors.SpecError` at once for an impossible group.
    """

    layers: Sequence[int]
    kv_heads: int
    head_dim: int
    window: int | None = None
    guard_tokens: int | None = None
    v_head_dim: int = 0
    latent_dim: int = 0
    ring: bool | int = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", layer_numbers("LayerGroup", self.layers))
        for name in ("kv_heads", "head_dim"):
            self._check_count(name, minimum=1)
        if self.window is not None:
            self._check_count("window", minimum=1)
        if self.guard_tokens is not None:
            self._check_count("guard_tokens", minimum=0)
        for name in ("v_head_dim", "latent_dim"):
            self._check_count(name, minimum=0)
        self._check_latent()
        if not self.v_head_dim:
            object.__setattr__(self, "v_head_dim", self.latent_dim or self.head_dim)
        self._check_ring()

    def _check_latent(self) -> None:
        if not self.latent_dim:
            return
        if self.kv_heads != 1 or self.head_dim < self.latent_dim:
            raise SpecError(
                f"latent_dim={shown(self.latent_dim)} of a LayerGroup with kv_heads="
                f"{shown(self.kv_heads)} and head_dim={shown(self.head_dim)}: use one head, of the "
                "latent vector and the rotary key together"
            )
        if self.v_head_dim not in (0, self.latent_dim):
            raise SpecError(
                f"v_head_dim={shown(self.v_head_dim)} of a LayerGroup: V is the latent vector, of "
                f"{shown(self.latent_dim)} elements; leave it out"
            )

    def _check_count(self, name: str, minimum: int) -> None:
        value = getattr(self, name)
        count = whole_number(value)
        if count is None or count < minimum:
            raise SpecError(
                f"{name}={shown(value)} of a LayerGroup: use a whole number from {minimum}"
            )
        object.__setattr__(self, name, count)

    def _check_ring(self) -> None:
        if isinstance(self.ring, bool):
            if self.ring and self.window is None:
                raise SpecError("ring=True of a LayerGroup keeps a window: give it window= too")
            return
        self._check_count("ring", minimum=1)
        if self.window is None or self.ring <= self.window:
            raise SpecError(
                f"ring={self.ring} of a LayerGroup with window={self.window}: use a window, and "
                "more tokens than that, or ring=True for two windows"
            )

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """KV heads, elements of one in K and in V, and of a latent vector or 0."""
        return self.kv_heads, self.head_dim, self.v_head_dim, self.latent_dim


def ring_tokens(group: LayerGroup, guard_tokens: int, multiple: int) -> int:
    """Return how long the ring of a group is, in whole multiples of so many tokens; 0 without.

    The guard comes on top: kernels read so many tokens behind a row's last.
    """
    if not group.ring or group.window is None:
        return 0
    wanted = 2 * group.window if group.ring is True else group.ring
    return -(-(wanted + guard_tokens) // multiple) * multiple


def layer_numbers(group: str, layers: object) -> tuple[int, ...]:
    """Return the numbers of a group's layers, or raise ``SpecError``."""
    too_many = isinstance(layers, range) and len(layers) > _MOST_LAYERS
    if too_many or not isinstance(layers, Iterable) or isinstance(layers, (str, bytes)):
        raise SpecError(f"layers={shown(layers)} of a {group}: use numbers, such as range(0, 6)")
    numbers = [whole_number(layer) for layer in layers]
    if not numbers:
        raise SpecError(f"layers=() of a {group}: name one layer at least")
    if bad := [shown(n) for n, number in zip(layers, numbers, strict=True) if number is None]:
        raise SpecError(f"layers of a {group}: {bad[0]} is not a whole number")
    return tuple(number for number in numbers if number is not None)


def check_groups(groups: object) -> tuple[LayerGroup, ...]:
    """Return ``groups`` as a tuple.

    Raises :class:`~pyvattn.errors.SpecError` for what is no list of groups.
    """
    if not isinstance(groups, Sequence) or isinstance(groups, (str, bytes)):
        raise SpecError(f"groups={shown(groups)}: use a list of LayerGroup")
    for group in groups:
        if not isinstance(group, LayerGroup):
            raise SpecError(f"groups: {shown(group)} is not a LayerGroup")
    return tuple(groups)


def check_shared(shared: object, groups: Sequence[LayerGroup]) -> dict[int, int]:
    """Return which layer each of those reads that keep nothing of their own, in order.

    Every layer from 0 on must be in one group or among them. Raises
    :class:`~pyvattn.errors.SpecError` for layers that are named twice, for those that are
    nowhere and for those that read one that keeps nothing.
    """
    if not isinstance(shared, Mapping):
        raise SpecError(f"shared={shown(shared)}: use a dict of layers and the layers they read")
    pairs: dict[int, int] = {}
    for layer, source in shared.items():
        reader, read = whole_number(layer), whole_number(source)
        if reader is None or read is None:
            raise SpecError(f"shared: {shown(layer)} and {shown(source)} are not numbers of layers")
        pairs[reader] = read
    kept = {layer for group in groups for layer in group.layers}
    if pairs and not kept:
        raise SpecError("shared needs groups: name the layers that keep K and V in a LayerGroup")
    for reader, read in pairs.items():
        if read not in kept:
            raise SpecError(f"shared: layer {reader} reads layer {read}, which is in no group")
    _check_numbers(sorted([*(layer for group in groups for layer in group.layers), *pairs]))
    return dict(sorted(pairs.items()))


def _check_numbers(numbers: Sequence[int]) -> None:
    for place, layer in enumerate(numbers):
        if place and layer == numbers[place - 1]:
            raise SpecError(f"layer {shown(layer)} is in several groups: name it in one")
        if layer != place:
            raise SpecError(
                f"layer {place} is in no group: number the layers that keep K and V, or read those "
                f"of another, from 0 to {len(numbers) - 1}"
            )
