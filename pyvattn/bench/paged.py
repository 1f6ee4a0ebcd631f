# SPDX-License-Identifier: Apache-2.0
"""The same tokens in the blocks of paged attention, for the libraries that have it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyvattn.kernels import kernel_named

_BLOCKS = {
    # FlashAttention-2 takes multiples of 256 only.
    "flash-attn-2": (256,),
    "flash-attn-3": (16, 64, 128, 256),
}
_TABLES = {"flash-attn-2": "block_table", "flash-attn-3": "page_table"}


def block_sizes(kernel: str) -> tuple[int, ...]:
    """Return the tokens of a block for each paged form of ``kernel``: none where it has no such."""
    return _BLOCKS.get(kernel, ())


def paged_name(block: int) -> str:
    """Return what results call the paged form with blocks of ``block`` tokens."""
    return f"paged, {block} tokens"


def paged_alternatives(
    torch: Any,
    kernel: str,
    q: Any,
    lengths: Any,
    layers: list[tuple[Any, Any]],
    context: int,
) -> dict[str, Callable[[], None]]:
    """Return one call for each block size that the kernel's own paged form takes.

    Blocks lie in random order, as they do after a while in an engine.
    """
    from importlib import import_module

    if not block_sizes(kernel):
        return {}
    attend = import_module(kernel_named(kernel).module).flash_attn_with_kvcache

    def over_layers(block: int) -> Callable[[], None]:
        table, paged = cut_into_blocks(torch, layers, context, block)
        options = {_TABLES[kernel]: table, "cache_seqlens": lengths, "causal": True}

        def call() -> None:
            for k, v in paged:
                attend(q, k, v, softmax_scale=q.shape[-1] ** -0.5, **options)

        return call

    return {paged_name(block): over_layers(block) for block in block_sizes(kernel)}


def cut_into_blocks(
    torch: Any, layers: list[tuple[Any, Any]], context: int, block: int
) -> tuple[Any, list[tuple[Any, Any]]]:
    """Return the table ``[rows, blocks]`` and each layer's ``[blocks, block, heads, dim]``."""
    rows, device = layers[0][0].shape[0], layers[0][0].device
    per_row = -(-context // block)
    order = torch.randperm(rows * per_row, device=device)
    table = torch.empty_like(order)
    table[order] = torch.arange(len(order), device=device)

    def cut(tensor: Any) -> Any:
        padded = tensor.new_zeros(rows, per_row * block, *tensor.shape[2:])
        padded[:, :context] = tensor[:, :context]
        return padded.view(rows * per_row, block, *tensor.shape[2:])[order].contiguous()

    table = table.view(rows, per_row).to(torch.int32)
    return table, [(cut(k), cut(v)) for k, v in layers]
