# SPDX-License-Identifier: Apache-2.0
"""FlexAttention over tiles of many rows, in one call; see :mod:`pyvattn.attention.tiles`."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cache
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import (
    AuxRequest,
    BlockMask,
    flex_attention,
    noop_mask,
)

from pyvattn.attention.tiles import Keys, Tiles

# Of a score, the row's place in the batch, the head, and the positions of query and token.
Change = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]

_WARPS = {16: 2, 64: 4}


@dataclass(frozen=True)
class Asked:
    """What tiles are attended with, beside tensors.

    ``group``: heads that share a KV head. ``variant`` says what ``change`` depends on that is no
    tensor: it is compiled once for each.
    """

    change: Change
    scale: float
    group: int
    variant: Hashable


def attend_tiles(q: Tensor, k: Tensor, v: Tensor, tiles: Tiles, keys: Keys, asked: Asked) -> Tensor:
    """Return ``[kv_heads, tiles * size, dim]``, of queries as ``tiles`` gathers them.

    ``k`` and ``v`` are sequences of ``keys``. No block is read but those of the tiles.
    """
    attend = _attend_plainly
    if _compiles(q.device):
        in_parts = tiles.blocks.shape[1] > 1
        attend = _compiled((tiles.size, keys.block, asked.group, in_parts, asked.variant))
    return attend(
        q,
        k,
        v,
        tiles.first_blocks,
        tiles.blocks,
        (tiles.batch, tiles.groups, tiles.positions, tiles.row_keys, tiles.begins, tiles.ends),
        asked.change,
        asked.scale,
        (tiles.size, keys.block, asked.group),
    )


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    first_blocks: Tensor,
    blocks: Tensor,
    of_query: tuple[Tensor, ...],
    change: Change,
    scale: float,
    sizes: tuple[int, int, int],
) -> Tensor:
    size, block, group = sizes
    tiles, splits = blocks.shape
    call: dict[str, Any] = {
        "score_mod": _on_keys(change, of_query, group),
        "block_mask": BlockMask(
            seq_lengths=(q.shape[2], k.shape[2]),
            kv_num_blocks=blocks.view(1, 1, tiles * splits),
            # The first of each alone: the others follow it.
            kv_indices=first_blocks.view(1, 1, tiles * splits, 1),
            full_kv_num_blocks=None,
            full_kv_indices=None,
            q_num_blocks=None,
            q_indices=None,
            full_q_num_blocks=None,
            full_q_indices=None,
            BLOCK_SIZE=(size, block),
            mask_mod=noop_mask,
        ),
        "scale": scale,
        "kernel_options": {
            "BACKEND": "TRITON",
            "BLOCKS_ARE_CONTIGUOUS": True,
            "BLOCK_M": size,
            "BLOCK_N": block,
            "num_warps": _WARPS[size],
            "num_stages": 2,
        },
    }
    if splits == 1:
        alone: Any = flex_attention(q, k, v, **call)
        whole: Tensor = alone[0]
        return whole
    aux: Any
    out, aux = flex_attention(q, k, v, return_aux=AuxRequest(lse=True), **call)
    return _joined(out[0], aux.lse[0], (tiles, splits, size))


def _attend_plainly(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    first_blocks: Tensor,
    blocks: Tensor,
    of_query: tuple[Tensor, ...],
    change: Change,
    scale: float,
    sizes: tuple[int, int, int],
) -> Tensor:
    """Do the same without compiling: torch then reads all keys that it is given, so only a part's.

    For a CPU, where :func:`_attend` would be slow to compile.
    """
    size, block, group = sizes
    changed = _on_keys(change, of_query, group)
    out = q.new_zeros(*q.shape[1:3], v.shape[-1])
    lse = torch.full(q.shape[1:3], -torch.inf)
    aux: Any
    parts = zip(first_blocks.flatten().tolist(), blocks.flatten().tolist(), strict=True)
    for part, (first, count) in enumerate(parts):
        if count == 0:
            continue
        queries = slice(part * size, (part + 1) * size)
        tokens = slice(first * block, (first + count) * block)
        at = torch.tensor(queries.start), torch.tensor(tokens.start)

        def shifted(
            score: Tensor,
            batch: Tensor,
            head: Tensor,
            query: Tensor,
            key: Tensor,
            at: tuple[Tensor, Tensor] = at,
        ) -> Tensor:
            return changed(score, batch, head, query + at[0], key + at[1])

        attended, aux = flex_attention(
            q[:, :, queries],
            k[:, :, tokens],
            v[:, :, tokens],
            score_mod=shifted,
            scale=scale,
            return_aux=AuxRequest(lse=True),
        )
        out[:, queries], lse[:, queries] = attended[0], aux.lse[0]
    return _joined(out, lse, (*blocks.shape, size))


def _on_keys(change: Change, of_query: tuple[Tensor, ...], group: int) -> Change:
    """Return what is done to a score of a tile's query and a key of the sequence."""
    batch, groups, positions, row_keys, begins, ends = of_query

    def changed(score: Tensor, _: Tensor, kv_head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        head = kv_head * group + groups[query]
        token = key - row_keys[query]
        score = change(score, batch[query], head, positions[query], token)
        seen = (key >= begins[query]) & (key < ends[query])
        return torch.where(seen, score, -float("inf"))

    return changed


def _joined(out: Tensor, lse: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return what the parts of each tile's keys give together, of ``[kv_heads, parts, dim]``.

    ``shape``: tiles, parts of each, and queries of a tile.
    """
    heads, _, dim = out.shape
    sums = lse.view(heads, *shape)
    most = sums.amax(2, keepdim=True)
    # Of a query that sees nothing all are minus infinity.
    weights = (sums - most.where(most > -torch.inf, 0)).exp()
    parts = out.view(heads, *shape, dim)
    total = weights.sum(2).clamp(min=torch.finfo(weights.dtype).tiny)
    joined = (parts * weights[..., None]).sum(2) / total[..., None]
    return joined.to(out.dtype).flatten(1, 2)


def _compiles(device: torch.device) -> bool:
    return device.type == "cuda"


@cache
def _compiled(variant: Hashable) -> Any:
    """Return :func:`_attend`, compiled.

    torch keeps few variants of a piece of code, and then runs it without compiling, which would
    read every key: so each has a copy of the code, and must compile.
    """
    copy = FunctionType(_attend.__code__.replace(), globals(), f"{_attend.__name__}_tiles")
    return torch.compile(copy, dynamic=True, fullgraph=True)
