# SPDX-License-Identifier: Apache-2.0
"""Short rows in tiles, so that one call of a kernel attends to all of them.

The rows of an arena are one sequence of keys: token ``t`` of slot ``s`` is key
``s * row_step + t``. The queries of a row, those of heads that share a KV head one after the
other, are cut into tiles, and a tile names the blocks of keys that it attends to, which follow
each other. A block is part of a physical page, so nothing unmapped is read. Everything but the
counts stays on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

import torch
from torch import Tensor
from torch.nn.functional import pad

from pyvattn.attention.indices import to_device
from pyvattn.attention.problem import UNLIMITED, Problem

# Queries of a row up to which it is short. A longer one fills a GPU by itself, and the tiles that
# suit it are larger.
MOST_QUERIES = 128
# What a tile holds: queries of decode, or of short prompts. A product of matrices wants 16.
_TILE_SIZES = (16, 64)
# Tiles are padded to so many queries in all: kernels take that better, and for fewer shapes.
_WHOLE = 128
_LEAST_BLOCK = 16
# Bytes of a block of keys of one head: more do not fit beside a tile.
_BLOCK_BYTES = 1 << 14
_INT32 = torch.iinfo(torch.int32).max


@dataclass(frozen=True)
class Keys:
    """K and V of all rows as one sequence, in blocks of ``block`` tokens."""

    row_step: int
    block: int

    @classmethod
    def of(cls, problem: Problem) -> Keys | None:
        """Return how, or ``None`` where rows do not lie that way or blocks are too small."""
        steps = {_row_step(cache) for cache in (problem.k, problem.v)}
        (row_step,) = steps if len(steps) == 1 else (None,)
        if row_step is None or problem.k.shape[0] * row_step > _INT32 or problem.in_ring:
            return None
        pages = [_page_tokens(cache, problem.page_bytes) for cache in (problem.k, problem.v)]
        widest = max(problem.k.shape[-1], problem.v.shape[-1]) * problem.k.itemsize
        largest = max(_LEAST_BLOCK, 1 << (_BLOCK_BYTES // widest).bit_length() - 1)
        block = gcd(*pages, row_step, min(largest, 64))
        return cls(row_step, block) if block >= _LEAST_BLOCK else None

    def sequence(self, cache: Tensor) -> Tensor:
        """Return a layer's K or V as ``[1, kv_heads, keys, dim]``, without a copy."""
        keys = (cache.shape[0] - 1) * self.row_step + cache.shape[1]
        flat = cache.as_strided((keys, *cache.shape[2:]), cache.stride()[1:])
        return flat.transpose(0, 1)[None]


@dataclass(frozen=True)
class Tiles:
    """The tiles of some rows of a problem, ``size`` queries each, padding among them.

    A tile's keys have ``splits`` parts, attended to apart. ``first_blocks`` and ``blocks``,
    ``[tiles, splits]``, int32: where each part begins, and how many blocks it has. The others are
    ``[tiles * splits * size]``, since each part has the queries of its tile: ``queries`` and
    ``groups`` are the place among packed queries and the head of those that share a KV head;
    ``batch`` is the row's place in the batch, ``positions`` the query's in its row, ``row_keys``
    the key of the row's token 0, ``begins`` and ``ends`` bound the keys that it may see.

    ``places`` are the packed queries of these rows in order, and ``found`` where each of them is
    in the tiles, ``[queries * heads of a group]``.
    """

    size: int
    first_blocks: Tensor
    blocks: Tensor
    queries: Tensor
    groups: Tensor
    batch: Tensor
    positions: Tensor
    row_keys: Tensor
    begins: Tensor
    ends: Tensor
    places: Tensor
    found: Tensor

    def gather(self, q: Tensor, kv_heads: int) -> Tensor:
        """Return packed queries as ``[1, kv_heads, tiles * splits * size, dim]``."""
        tiled: Tensor = q.unflatten(1, (kv_heads, -1))[self.queries, :, self.groups]
        return tiled.transpose(0, 1)[None]

    def scatter(self, out: Tensor, group: int) -> Tensor:
        """Return ``[kv_heads, tiles * size, dim]`` as ``[queries, heads, dim]``, as ``places``."""
        found: Tensor = out.transpose(0, 1)[self.found].unflatten(0, (-1, group))
        return found.transpose(1, 2).flatten(1, 2)


def short_rows(problem: Problem) -> list[int]:
    """Return the rows that have queries, and few enough to be attended to together."""
    return [i for i, count in enumerate(problem.host_counts) if 0 < count <= MOST_QUERIES]


def cut(problem: Problem, rows: Sequence[int], keys: Keys, programs: int) -> Tiles:
    """Cut some rows of ``problem`` into tiles; the host reads no length and no slot.

    ``programs``: how many a device runs at once, among which a tile's keys are split.
    """
    kv_heads = problem.k.shape[2]
    group = problem.q.shape[-2] // kv_heads
    known = [problem.host_counts[row] * group for row in rows]
    size = next((size for size in _TILE_SIZES if max(known) <= size), _TILE_SIZES[-1])
    tiles = sum(-(-count // size) for count in known)
    splits = max(1, programs // (tiles * kv_heads))
    of = _Rows.of(problem, rows, group)
    row, tile = _spread((of.counts + size - 1) // size, tiles)
    lane = tile[:, None] * size + torch.arange(size, device=row.device)
    is_query = lane < of.counts[row][:, None]
    offset = lane // group

    base = of.slots * keys.row_step
    begin, end = base + of.begins, base + of.lengths
    first = begin // keys.block
    blocks = ((end + keys.block - 1) // keys.block - first).where(end > begin, 0)
    per_part = ((blocks + splits - 1) // splits)[row][:, None]
    skipped = per_part * torch.arange(splits, device=row.device)

    more = -tiles % (_WHOLE // size)

    def padded(values: Tensor) -> Tensor:
        return pad(values, (0, 0, 0, more))

    def by_part(values: Tensor) -> Tensor:
        each = padded(values.expand(tiles, size))[:, None]
        return each.expand(-1, splits, -1).flatten()

    of_query, behind = _spread(of.counts, sum(known))
    first_tile = (of.counts + size - 1) // size
    first_tile = first_tile.cumsum(0) - first_tile
    return Tiles(
        size=size,
        first_blocks=padded(first[row][:, None] + skipped).int(),
        blocks=padded((blocks[row][:, None] - skipped).clamp(min=0).minimum(per_part)).int(),
        queries=by_part((of.first_queries[row][:, None] + offset).where(is_query, 0)),
        groups=by_part(lane % group),
        batch=by_part(of.batch[row][:, None]).int(),
        positions=by_part((of.lengths - of.counts // group)[row][:, None] + offset).int(),
        row_keys=by_part(base[row][:, None]).int(),
        begins=by_part(begin[row][:, None]).int(),
        # Padding sees nothing.
        ends=by_part(end[row][:, None].where(is_query, 0)).int(),
        places=(of.first_queries[of_query] + behind // group)[::group],
        found=first_tile[of_query] * size + behind,
    )


def _spread(counts: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """Return, for each of ``total`` things, which row has it and how many it has before it."""
    row = torch.repeat_interleave(
        torch.arange(len(counts), device=counts.device), counts, output_size=total
    )
    before = counts.cumsum(0) - counts
    return row, torch.arange(total, device=counts.device) - before[row]


@dataclass(frozen=True)
class _Rows:
    """Some rows of a problem, int64 on its device; ``counts`` are those of queries and heads."""

    batch: Tensor
    slots: Tensor
    counts: Tensor
    begins: Tensor
    lengths: Tensor
    first_queries: Tensor

    @classmethod
    def of(cls, problem: Problem, rows: Sequence[int], group: int) -> _Rows:
        ends = problem.query_ends.long()
        slots, lengths = problem.device_slots.long(), problem.device_lengths.long()
        starts = problem.device_starts
        begins = torch.zeros_like(lengths) if starts is None else starts.long()
        counts = ends.diff()
        left, _ = problem.bounds
        if left != UNLIMITED:
            begins = begins.maximum(lengths - counts - left)
        batch = torch.arange(len(lengths), device=lengths.device)
        every = cls(batch, slots, counts * group, begins, lengths, ends[:-1])
        if len(rows) == len(lengths):
            return every
        kept = to_device(rows, lengths.device).long()
        return cls(*(values[kept] for values in vars(every).values()))


def _row_step(cache: Tensor) -> int | None:
    """Return how many tokens it is from a row to the next, ``None`` where that is no number."""
    if cache.shape[0] == 1:
        return cache.shape[1]
    step, rest = divmod(cache.stride(0), cache.stride(1))
    return None if rest or step < cache.shape[1] else step


def _page_tokens(cache: Tensor, page_bytes: int | None) -> int:
    """Return the tokens of a page, 1 where that is not known or no whole number."""
    tokens, rest = divmod(page_bytes or 0, cache.stride(1) * cache.itemsize)
    return 1 if rest or not tokens else tokens
