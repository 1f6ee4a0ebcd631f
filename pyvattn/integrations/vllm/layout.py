# SPDX-License-Identifier: Apache-2.0
"""How a page holds the tokens of one of vLLM's blocks, as vLLM's attention backends see it."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from pyvattn.errors import ConfigError
from pyvattn.units import format_page_size

__all__ = ["BlockShape", "Paging", "choose_paging", "read_shape"]

# Backends whose kernels take any stride from one token to the next.
_STRIDED = ("FLASH_ATTN", "TRITON_ATTN")


@dataclass(frozen=True)
class BlockShape:
    """A layer's KV cache: ``shape`` has one block at ``block_dim`` and its tokens at ``token_dim``.

    ``order`` are the dimensions as they follow each other in memory.
    """

    shape: tuple[int, ...]
    order: tuple[int, ...]
    block_dim: int
    token_dim: int

    def takes_tokens_apart(self, backend_name: str) -> bool:
        """Return whether layers may lie between one token and the next.

        Then the tokens of a row have one stride from block to block: what kernels without
        a block table need.
        """
        inner = [dim for dim in self.order if dim != self.block_dim]
        return backend_name in _STRIDED and inner[0] == self.token_dim

    def view(
        self, layer: int, layers: int, by_token: bool
    ) -> tuple[tuple[int, ...], tuple[int, ...], int]:
        """Return shape, strides and offset, in elements, of one of a page's ``layers``.

        ``by_token``: the layers of a token lie side by side, so that the tokens of a row have
        one stride. Otherwise the layers of a block do, each as vLLM itself has it.
        """
        inner = [dim for dim in self.order if dim != self.block_dim]
        if by_token:
            inner.remove(self.token_dim)
        own = prod(self.shape[dim] for dim in inner)
        strides = dict(zip(inner, self._compact(inner), strict=True))
        if by_token:
            strides[self.token_dim] = layers * own
        strides[self.block_dim] = layers * prod(self.shape)
        dims = range(len(self.shape))
        return self.shape, tuple(strides[dim] for dim in dims), layer * own

    def _compact(self, dims: list[int]) -> list[int]:
        return [prod(self.shape[dim] for dim in dims[i + 1 :]) for i in range(len(dims))]


def read_shape(backend: Any, spec: Any, cache: Any) -> BlockShape:
    """Return how one of vLLM's attention backends sees a ``FullAttentionSpec``.

    Up to vLLM 0.31 the backend says it, from 0.32 on the ``CacheConfig``.
    """
    if hasattr(cache, "get_resolved_kv_cache_layout"):
        order = tuple(cache.get_resolved_kv_cache_layout().layer_view_order)
        content = spec.head_size + spec.head_size_v
        return BlockShape(
            (1, spec.num_kv_heads, spec.block_size, content), order, block_dim=0, token_dim=2
        )

    def shape(blocks: int, tokens: int) -> tuple[int, ...]:
        sizes = (blocks, tokens, spec.num_kv_heads, spec.head_size)
        return tuple(backend.get_kv_cache_shape(*sizes, cache_dtype_str=cache.cache_dtype))

    one = shape(1, spec.block_size)
    try:
        order = tuple(backend.get_kv_cache_stride_order())
    except (AttributeError, NotImplementedError):
        order = tuple(range(len(one)))  # as vLLM takes it
    return BlockShape(
        one,
        order,
        block_dim=_changed(one, shape(2, spec.block_size)),
        token_dim=_changed(one, shape(1, 2 * spec.block_size)),
    )


def _changed(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    return next(dim for dim, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)


@dataclass(frozen=True)
class Paging:
    """Page size in bytes, and how many layers share an arena: a block is a page of each arena."""

    page_size: int
    layers_per_arena: int


def choose_paging(
    page_sizes: list[int],
    layers: int,
    token_bytes: int,
    block_size: int,
    *,
    in_parts: bool = True,
) -> Paging:
    """Return the largest pages, and so the fewest map calls, that blocks fill exactly.

    ``token_bytes`` are those of one layer. Without ``in_parts`` a page has one layer or all of
    them: what copies a block by the tensor of one layer finds the others there. Raises
    :class:`~pyvattn.errors.ConfigError` with the block sizes that would do.
    """
    groups = [group for group in range(1, layers + 1) if layers % group == 0]
    if not in_parts:
        groups = sorted({1, layers})
    for page_size in sorted(page_sizes, reverse=True):
        for group in groups:
            if group * token_bytes * block_size == page_size:
                return Paging(page_size, group)
    fitting = {
        page_size // (group * token_bytes)
        for page_size in page_sizes
        for group in groups
        if page_size % (group * token_bytes * 16) == 0
    }
    pages = ", ".join(format_page_size(size) for size in sorted(page_sizes))
    remedy = (
        f"use --block-size {' or '.join(map(str, sorted(fitting)[:4]))}"
        if fitting
        else ("leave out --worker-cls: no block size does")
    )
    raise ConfigError(
        f"blocks of {block_size} tokens, of {token_bytes} bytes in each of {layers} layers, do not "
        f"fill whole pages of {pages}: {remedy}"
    )
