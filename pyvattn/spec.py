# SPDX-License-Identifier: Apache-2.0
"""What a KV cache must hold: the shape of the model and the number of requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from os import PathLike
from typing import Any

from pyvattn.dtypes import ITEMSIZE, dtype_name
from pyvattn.errors import LayerError, SpecError
from pyvattn.geometry import Geometry, addresses_refused, build_geometry
from pyvattn.layer_group import LayerGroup, check_groups, check_shared, ring_tokens
from pyvattn.spec_groups import (
    apart,
    common_fields,
    parts_of,
    places_of,
    with_groups,
    without_idle_windows,
)
from pyvattn.state_group import StateGroup, check_states
from pyvattn.text import shown
from pyvattn.units import format_size
from pyvattn.whole_numbers import whole_number


@dataclass(frozen=True)
class CacheSpec:
    """Shape of one model's KV cache.

    ``layers`` are the layers that keep K and V; ``kv_heads`` and ``head_dim``
    are those of one rank, and V is as wide as K unless ``v_head_dim`` says
    otherwise. ``max_tokens`` is the longest request and ``max_slots`` the most
    requests that are live at once: both cost addresses only, not memory.
    ``guard_tokens`` past every length read as finite values, because some
    kernels read whole tiles; ``pyvattn info`` lists how many each needs, and
    those of torch's own attention need none.

    ``kind="mla"`` (multi-head latent attention, see :meth:`mla`) keeps one
    latent vector of ``latent_dim`` and one rotary key of ``rope_dim`` elements
    for each token and layer instead of K and V heads.

    Where layers differ, in shape or in how long they keep a token, ``groups`` lists
    :class:`~pyvattn.LayerGroup` in place of ``layers``, ``kv_heads`` and ``head_dim``.
    ``layers`` is then the number of all layers, and the others are what the groups
    have in common, or 0 where they differ. Layers that read the K and V of another one and keep
    none are in no group: ``shared`` maps each to the layer that it reads.

    ``states`` are :class:`~pyvattn.StateGroup` of layers that keep a state of fixed size for each
    request; those given among ``groups`` are moved there. :meth:`pyvattn.KVCache.state` has them.

    Raises :class:`~pyvattn.errors.SpecError` at once for an impossible shape.
    """

    layers: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    dtype: str = "bfloat16"
    max_slots: int = 256
    max_tokens: int = 131072
    guard_tokens: int = 192
    kind: str = "kv"
    latent_dim: int = 0
    rope_dim: int = 0
    groups: Sequence[LayerGroup] = ()
    v_head_dim: int = 0
    shared: Mapping[int, int] = field(default_factory=dict, hash=False)
    states: Sequence[StateGroup] = ()

    def __post_init__(self) -> None:
        self._take_groups()
        shape = () if self.groups else ("layers", "kv_heads", "head_dim")
        for name in (*shape, "max_slots", "max_tokens"):
            self._check_count(name, minimum=1)
        for name in ("guard_tokens", "latent_dim", "rope_dim", "v_head_dim"):
            self._check_count(name, minimum=0)
        object.__setattr__(self, "dtype", dtype_name(self.dtype))
        self._check_kind()
        self._check_reservation()

    def _take_groups(self) -> None:
        """Say of all layers what the groups say of some."""
        states, groups = apart(self.groups, self.states)
        object.__setattr__(self, "states", check_states(states))
        groups = check_groups(groups)
        shared = check_shared(self.shared, groups)
        object.__setattr__(self, "groups", groups)
        object.__setattr__(self, "shared", shared)
        if not groups:
            return
        for name, value in common_fields(groups, shared).items():
            given = getattr(self, name)
            fits = given in ("kv", value) if name == "kind" else whole_number(given) in (0, value)
            if not fits:
                raise SpecError(
                    f"{name}={shown(given)} beside groups, which have {value}: give groups alone"
                )
            object.__setattr__(self, name, value)

    def _check_count(self, name: str, minimum: int) -> None:
        value = getattr(self, name)
        count = whole_number(value)
        if count is None:
            raise SpecError(f"{name}={shown(value)} is not a whole number")
        if count < minimum:
            raise SpecError(f"{name}={shown(count)} is too small: it must be at least {minimum}")
        object.__setattr__(self, name, count)

    def _check_kind(self) -> None:
        """Check the fields of latent vectors, and say how wide V is."""
        if not isinstance(self.kind, str) or self.kind not in ("kv", "mla"):
            raise SpecError(f"kind={shown(self.kind)} is unknown: use 'kv' or 'mla'")
        if self.kind == "kv":
            if self.latent_dim or self.rope_dim:
                raise SpecError(
                    f"latent_dim={shown(self.latent_dim)} and rope_dim={shown(self.rope_dim)} need "
                    "kind='mla'"
                )
        else:
            if self.latent_dim < 1:
                raise SpecError("kind='mla' needs latent_dim, such as 512")
            width = self.latent_dim + self.rope_dim
            if self.kv_heads != 1 or self.head_dim != width:
                raise SpecError(
                    f"kind='mla' has one head of latent_dim + rope_dim = {width} elements, not "
                    f"{self.kv_heads} of {self.head_dim}: use CacheSpec.mla()"
                )
            if self.v_head_dim not in (0, self.latent_dim):
                raise SpecError(
                    f"v_head_dim={self.v_head_dim} of kind='mla': V is the latent vector, of "
                    f"{self.latent_dim} elements; leave it out"
                )
        if not self.v_head_dim:
            object.__setattr__(self, "v_head_dim", self.latent_dim or self.head_dim)

    def _check_reservation(self) -> None:
        if addresses_refused(self.token_bytes):
            raise SpecError(
                f"one token of layers={shown(self.layers)}, kv_heads={shown(self.kv_heads)} and "
                f"head_dim={shown(self.head_dim)} takes {format_size(self.token_bytes)}: no model "
                "has so many, check these numbers"
            )
        if too_much := addresses_refused(self.max_slots * (self.row_bytes + self.state_bytes)):
            raise SpecError(
                f"max_slots={shown(self.max_slots)} rows of max_tokens={shown(self.max_tokens)} "
                f"{too_much}: lower one of them"
            )

    @classmethod
    def mla(
        cls, *, layers: int, latent_dim: int = 512, rope_dim: int = 64, **options: Any
    ) -> CacheSpec:
        """Return the spec of a model with multi-head latent attention (DeepSeek-V2 and later).

        ``options`` are the remaining fields of the class.
        """
        _check_field_names(cls, options)
        for name, value in (("latent_dim", latent_dim), ("rope_dim", rope_dim)):
            if whole_number(value) is None:
                raise SpecError(f"{name}={shown(value)} is not a whole number")
        return cls(
            layers=layers,
            kv_heads=1,
            head_dim=latent_dim + rope_dim,
            kind="mla",
            latent_dim=latent_dim,
            rope_dim=rope_dim,
            **options,
        )

    @classmethod
    def from_hf_config(
        cls,
        config: Mapping[str, Any] | str | PathLike[str],
        *,
        tensor_parallel: int = 1,
        **overrides: Any,
    ) -> CacheSpec:
        """Return the spec of a Hugging Face model.

        ``config`` is the parsed ``config.json``, its path, or the path of the
        folder it lies in. ``overrides`` replace fields of the result: the
        config knows nothing of ``max_slots``, and its ``max_tokens`` is the
        model's limit. With ``tensor_parallel`` the spec is that of one rank.
        """
        from pyvattn.configs import read_fields

        _check_field_names(cls, overrides)
        found = {**read_fields(config, overrides), **overrides}
        return without_idle_windows(cls(**found)).shard(tensor_parallel)

    def shard(self, ranks: int) -> CacheSpec:
        """Return the spec of one of ``ranks`` tensor-parallel ranks.

        Heads are divided; where there are fewer heads than ranks, each rank
        holds one, and the latent vector of MLA is on every rank.
        """
        number = whole_number(ranks)
        if number is None or number < 1:
            raise SpecError(f"tensor_parallel={shown(ranks)}: use a whole number from 1")
        if not self.groups and max(number, self.kv_heads) % min(number, self.kv_heads):
            raise SpecError(
                f"kv_heads={self.kv_heads} cannot be divided over {shown(number)} ranks"
            )
        states = tuple(group.shard(number) for group in self.states)
        if not self.groups:
            return replace(self, kv_heads=max(1, self.kv_heads // number), states=states)
        parts = [part.shard(number) for part in self.parts]
        heads = (part.kv_heads for part in parts)
        groups = [replace(g, kv_heads=n) for g, n in zip(self.groups, heads, strict=True)]
        return replace(with_groups(self, groups), states=states)

    # --- groups ---

    @property
    def parts(self) -> tuple[CacheSpec, ...]:
        """A spec of layers that are alike for each group, in order; without groups, itself.

        Their tokens are those of a window as well: see ``groups``.
        """
        return self._parts if self.groups or self.states else (self,)

    @cached_property
    def _parts(self) -> tuple[CacheSpec, ...]:
        return parts_of(self)

    @cached_property
    def _places(self) -> tuple[tuple[int, int], ...]:
        return places_of(self)

    @property
    def windows(self) -> tuple[int | None, ...]:
        """How many tokens the layers of each part keep; ``None``: all."""
        return tuple(group.window for group in self.groups) or (None,)

    def group_of(self, layer: int) -> tuple[int, int]:
        """Return which part a layer is in, and which of its layers it is.

        Of one that reads another's K and V, where that one is. Raises
        :class:`~pyvattn.errors.LayerError` for a layer that there is not.
        """
        number = whole_number(layer)
        if number is None or not 0 <= number < self.layers:
            raise LayerError(f"layer {shown(layer)} is outside 0..{self.layers - 1}")
        return self._places[number] if self.groups else (0, number)

    @property
    def kept_layers(self) -> int:
        """Layers that keep K and V of their own: all but those that are ``shared``."""
        return self.layers - len(self.shared)

    def source_of(self, layer: int) -> int:
        """Return the layer whose K and V ``layer`` reads: itself, unless it is ``shared``.

        Raises :class:`~pyvattn.errors.LayerError`.
        """
        self.group_of(layer)
        return self.shared.get(layer, layer)

    def window_of(self, layer: int) -> int | None:
        """Return how many tokens a layer keeps; ``None`` for all. Raises ``LayerError``."""
        return self.windows[self.group_of(layer)[0]]

    def guard_of(self, layer: int) -> int:
        """Return the tail guard of a layer. Raises :class:`~pyvattn.errors.LayerError`."""
        place, _ = self.group_of(layer)
        own = self.groups[place].guard_tokens if self.groups else None
        return self.guard_tokens if own is None else own

    def bytes_at(self, tokens: int) -> int:
        """Return the bytes that a request of so many tokens needs, guards and pages aside.

        Its states are among them; no tokens are no request.
        """
        count = whole_number(tokens)
        if count is None or count < 0:
            raise SpecError(f"tokens={shown(tokens)}: use a whole number from 0")
        kept = sum(
            part.token_bytes * (count if window is None else min(count, window))
            for part, window in zip(self.parts, self.windows, strict=True)
        )
        return kept + self.state_bytes if count else 0

    def flat(self) -> CacheSpec:
        """Return the spec of the same layers without groups: each keeps every token.

        Raises :class:`~pyvattn.errors.SpecError` where layers have K and V of several shapes,
        and where some read those of others, which takes a group.
        """
        if not self.groups:
            return self
        self._check_alike("a spec without groups")
        if self.shared:
            raise SpecError(
                f"{len(self.shared)} layers read the K and V of others, and a spec without groups "
                "has no such layers: use each of the spec's parts by itself"
            )
        guard = max(part.guard_tokens for part in self.parts)
        return replace(self, groups=(), guard_tokens=guard)

    def _check_alike(self, what: str) -> None:
        if self.groups and not self.kv_heads:
            shapes = ", ".join(
                f"{len(group.layers)} of {group.kv_heads} heads of {group.head_dim}"
                for group in self.groups
            )
            raise SpecError(
                f"{what} has layers that are alike, and there are {shapes}: use each of the "
                "spec's parts by itself"
            )

    # --- sizes ---

    @property
    def state_bytes(self) -> int:
        """Bytes of the states of one request."""
        return sum(group.bytes for group in self.states)

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return ITEMSIZE[self.dtype]

    @property
    def tensor_token_bytes(self) -> int:
        """Bytes of one token in one tensor: its K of one layer, or its latent vector."""
        self._check_alike("tensor_token_bytes")
        return self.kv_heads * self.head_dim * self.itemsize

    @property
    def tensors_per_layer(self) -> int:
        """Tensors that a layer keeps: K and V, or one latent tensor."""
        return 1 if self.kind == "mla" else 2

    @property
    def token_bytes_per_layer(self) -> int:
        """Bytes of one token in one layer."""
        if self.kind == "mla":
            return self.tensor_token_bytes
        self._check_alike("token_bytes_per_layer")
        return self.kv_heads * (self.head_dim + self.v_head_dim) * self.itemsize

    @property
    def token_bytes(self) -> int:
        """Bytes of one token in all layers."""
        if self.groups:
            return sum(part.token_bytes for part in self.parts)
        return self.layers * self.token_bytes_per_layer

    @property
    def row_tokens(self) -> int:
        """Tokens that a slot has addresses for: the longest request and the guard."""
        return self.max_tokens + self.guard_tokens

    @property
    def row_bytes(self) -> int:
        """Bytes of a slot's full rows in all layers, before they are rounded up to pages."""
        if not self.groups:
            return self.row_tokens * self.token_bytes
        return sum(
            part.token_bytes * min(part.row_tokens, 2 * ring or part.row_tokens)
            for part, group in zip(self.parts, self.groups, strict=True)
            for ring in (ring_tokens(group, part.guard_tokens, 1),)
        )

    def geometry(
        self, layout: str, page_size: int | str, layers_per_arena: int | None = None
    ) -> Geometry:
        """Return the arenas that hold this spec in ``layout`` with pages of ``page_size`` bytes.

        ``layout="layer"`` gives every tensor of every layer an arena of its
        own, or every layer where V is not as wide as K; ``layout="token"``
        lays ``layers_per_arena`` layers (default: all) of one token side by
        side. Raises
        :class:`~pyvattn.errors.ConfigError` for what cannot be laid out, and
        :class:`~pyvattn.errors.SpecError` where whole pages make the addresses too many, and for
        a spec of several groups, each of which has a geometry of its own.
        """
        if len(self.groups) > 1:
            raise SpecError(
                f"the spec has {len(self.groups)} groups of layers: use each of its parts, or "
                "flat() to keep every token in all layers"
            )
        return self.geometries(layout, page_size, layers_per_arena)[0]

    def geometries(
        self, layout: str, page_size: int | str, layers_per_arena: int | None = None
    ) -> tuple[Geometry, ...]:
        """Return :meth:`geometry` for each of the spec's parts, all with one page size."""
        kept = self.groups or (None,)
        return tuple(
            build_geometry(part, layout, page_size, layers_per_arena, group)
            for part, group in zip(self.parts, kept, strict=True)
        )


def _check_field_names(spec: type[CacheSpec], named: Mapping[str, Any]) -> None:
    if unknown := set(named) - {field.name for field in fields(spec)}:
        raise SpecError(f"no such field of CacheSpec: {', '.join(sorted(unknown))}")
