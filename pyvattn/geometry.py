# SPDX-License-Identifier: Apache-2.0
"""Where the tokens of a :class:`~pyvattn.spec.CacheSpec` lie: arenas, strides and offsets."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import TYPE_CHECKING

from pyvattn import _native
from pyvattn.errors import ConfigError, SpecError
from pyvattn.layer_group import LayerGroup, ring_tokens
from pyvattn.text import shown
from pyvattn.units import format_page_size, format_size, parse_size
from pyvattn.whole_numbers import whole_number

if TYPE_CHECKING:
    from pyvattn.spec import CacheSpec

LAYOUTS = ("layer", "token")
MIN_PAGE_SIZE = 4 << 10
MAX_PAGE_SIZE = 1 << 30


@dataclass(frozen=True)
class TensorView:
    """One tensor of one layer, as a strided view of an arena.

    ``offset`` is in bytes from the start of the arena; ``shape`` is
    ``[slots, tokens, heads, dim]`` and ``strides`` are in elements, as DLPack
    wants them.
    """

    arena: int
    offset: int
    shape: tuple[int, int, int, int]
    strides: tuple[int, int, int, int]


@dataclass(frozen=True)
class LayerViews:
    """The K and the V of one layer. With MLA, V is the first ``latent_dim`` elements of K."""

    k: TensorView
    v: TensorView


@dataclass(frozen=True)
class Geometry:
    """All arenas of a cache are alike; this describes one, and where each layer is found.

    A slot's row begins at ``slot * row_bytes`` of every arena and takes
    whole pages; a token takes ``token_bytes`` of it. Where rows are rings of ``ring_tokens``,
    token ``p`` lies at ``p`` modulo so many, and a row's pages are mapped twice, side by side.
    """

    layout: str
    page_size: int
    layers_per_arena: int
    arenas: int
    slots: int
    max_tokens: int
    guard_tokens: int
    token_bytes: int
    row_bytes: int
    views: tuple[LayerViews, ...]
    ring_tokens: int = 0

    @property
    def layout_name(self) -> str:
        """The layout in words: ``layer``, ``token``, or ``token by 4`` for arenas of 4 layers."""
        few = self.layout == "token" and self.arenas > 1
        return f"token by {self.layers_per_arena}" if few else self.layout

    @property
    def arena_bytes(self) -> int:
        """Bytes of addresses that one arena reserves."""
        return self.slots * self.row_bytes

    def place_of(self, token: int) -> int:
        """Return where a token lies in its row, counted in tokens."""
        return token % self.ring_tokens if self.ring_tokens else token

    def chunk_tokens(self, window: int | None) -> int | None:
        """Return how many new tokens of a row keep clear of the window before; None: any number."""
        if not self.ring_tokens or window is None:
            return None
        return self.ring_tokens - (window - 1) - self.guard_tokens

    @property
    def tokens_per_page(self) -> float:
        """Tokens that lie in one page; below 1 where a token takes several pages."""
        return self.page_size / self.token_bytes

    def pages(self, tokens: int) -> int:
        """Return the pages of one arena's row that hold ``tokens`` tokens."""
        held = min(tokens, self.ring_tokens) if self.ring_tokens else tokens
        return -(-held * self.token_bytes // self.page_size)


def check_page_size(page_size: int | str) -> int:
    """Return ``page_size`` in bytes, or raise :class:`~pyvattn.errors.ConfigError`."""
    size = parse_size(page_size, "page size")
    if size & (size - 1) or not MIN_PAGE_SIZE <= size <= MAX_PAGE_SIZE:
        raise ConfigError(
            f"page size {shown(page_size)}: use a power of two from "
            f"{format_page_size(MIN_PAGE_SIZE)} to {format_page_size(MAX_PAGE_SIZE)}, such as '64K'"
        )
    return size


def check_layout(layout: str) -> str:
    """Return ``layout`` if there is such a layout, or raise ``ConfigError``."""
    if not isinstance(layout, str) or layout not in LAYOUTS:
        raise ConfigError(f"layout {shown(layout)} is unknown: use one of {', '.join(LAYOUTS)}")
    return layout


def build_geometry(
    spec: CacheSpec,
    layout: str,
    page_size: int | str,
    layers_per_arena: int | None = None,
    kept: LayerGroup | None = None,
) -> Geometry:
    """Work out where ``spec`` lies: what :meth:`pyvattn.CacheSpec.geometry` returns.

    ``kept`` is the group that its layers are, where it says how long they keep a token.
    """
    page = check_page_size(page_size)
    group = _layers_per_arena(spec, check_layout(layout), layers_per_arena)
    # In layout `layer` K and V are apart; otherwise `group` layers share an arena.
    split = layout == "layer" and tensors_are_alike(spec)
    token_bytes = spec.tensor_token_bytes if split else group * spec.token_bytes_per_layer
    ring = _ring_tokens(spec, kept, token_bytes, page)
    row_bytes = _native.row_bytes(spec.max_tokens, spec.guard_tokens, token_bytes, page, ring)
    tokens = 2 * ring or spec.max_tokens
    views = tuple(
        _layer_views(spec, layer, group, split, token_bytes, row_bytes, tokens)
        for layer in range(spec.layers)
    )
    arenas = spec.token_bytes // token_bytes
    if too_much := addresses_refused(arenas * spec.max_slots * row_bytes):
        raise SpecError(
            f"max_slots={spec.max_slots} rows in whole pages of {format_page_size(page)} "
            f"{too_much}: use smaller pages, or lower max_slots or max_tokens"
        )
    return Geometry(
        layout=layout,
        page_size=page,
        layers_per_arena=group,
        arenas=arenas,
        slots=spec.max_slots,
        max_tokens=spec.max_tokens,
        guard_tokens=spec.guard_tokens,
        token_bytes=token_bytes,
        row_bytes=row_bytes,
        views=views,
        ring_tokens=ring,
    )


def tensors_are_alike(spec: CacheSpec) -> bool:
    """Whether each tensor of a layer may have an arena of its own: all arenas are alike."""
    return spec.kind == "mla" or spec.head_dim == spec.v_head_dim


def _ring_tokens(spec: CacheSpec, kept: LayerGroup | None, token_bytes: int, page: int) -> int:
    """Return the length of a ring in whole pages; 0 where rows are as long as requests."""
    if kept is None:
        return 0
    ring = ring_tokens(kept, spec.guard_tokens, page // gcd(page, token_bytes))
    return ring if ring < spec.row_tokens else 0


def addresses_refused(needed: int) -> str | None:
    """Say why ``needed`` bytes of addresses are too many for a cache, or return None."""
    most = _native.MAX_VIRTUAL_BYTES
    if needed <= most:
        return None
    return f"need {format_size(needed)} of addresses, more than {format_size(most)}"


def _layers_per_arena(spec: CacheSpec, layout: str, wanted: int | None) -> int:
    if layout == "layer":
        if wanted is not None and whole_number(wanted) != 1:
            raise ConfigError(
                f"layers_per_arena={shown(wanted)} needs layout='token': layout 'layer' has "
                "arenas of one layer"
            )
        return 1
    if wanted is None:
        return spec.layers
    group = whole_number(wanted)
    if group is None or group < 1:
        raise ConfigError(f"layers_per_arena={shown(wanted)}: use a whole number from 1")
    if spec.layers % group:
        divisors = [d for d in range(1, spec.layers + 1) if spec.layers % d == 0]
        raise ConfigError(
            f"layers_per_arena={shown(group)} does not divide {spec.layers} layers: use one of "
            f"{', '.join(map(str, divisors))}"
        )
    return group


def _layer_views(
    spec: CacheSpec,
    layer: int,
    group: int,
    split: bool,
    token_bytes: int,
    row_bytes: int,
    tokens: int,
) -> LayerViews:
    tensors = spec.tensors_per_layer
    if split:
        places = [(layer * tensors + i, 0) for i in range(tensors)]
    else:
        first = (layer % group) * spec.token_bytes_per_layer
        places = [(layer // group, first + i * spec.tensor_token_bytes) for i in range(tensors)]
    k_arena, k_offset = places[0]
    v_arena, v_offset = places[-1]
    shape = (spec.max_slots, tokens, spec.kv_heads)
    slot, token = row_bytes // spec.itemsize, token_bytes // spec.itemsize
    # The only head of a latent vector begins with V.
    v_head = spec.head_dim if spec.kind == "mla" else spec.v_head_dim
    return LayerViews(
        k=TensorView(k_arena, k_offset, (*shape, spec.head_dim), (slot, token, spec.head_dim, 1)),
        v=TensorView(v_arena, v_offset, (*shape, spec.v_head_dim), (slot, token, v_head, 1)),
    )
