# SPDX-License-Identifier: Apache-2.0
"""How ``--attention-backend CUSTOM`` has a layer's blocks: what its two backends share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyvattn.errors import UnsupportedError

__all__ = ["RowLayout", "RowsOfRequests", "rows_only"]


class RowLayout:
    """Mixed into vLLM's attention backends: CUSTOM by name, with K and V apart."""

    @staticmethod
    def get_name() -> str:
        """Return the name that vLLM has for backends of others."""
        return "CUSTOM"

    @staticmethod
    def get_kv_cache_shape(
        num_blocks: int, block_size: int, num_kv_heads: int, head_size: int, **_: object
    ) -> tuple[int, ...]:
        """Return the shape of a layer's blocks: K of a token's heads, then V."""
        return (num_blocks, block_size, 2, num_kv_heads, head_size)


class RowsOfRequests:
    """Finds the row of each request in vLLM's block table, whose ids are positions of rows.

    ``positions`` are those of a row, of ``block_tokens`` tokens each. With ``windowed`` layers the
    row is that of a request's last block: of the first ones vLLM may have taken leave.
    """

    def __init__(self, positions: int, block_tokens: int, windowed: bool) -> None:
        self._positions = positions
        self._block_tokens = block_tokens
        self._windowed = windowed

    def rows(self, common: Any, out: Tensor | None = None) -> Tensor:
        """Return the rows of a ``CommonAttentionMetadata``, on its device, in ``out`` if given."""
        count = common.num_reqs
        table = common.block_table_tensor[:count]
        ids = table[:, 0]
        if self._windowed:
            last = (common.seq_lens[:count].long() - 1).clamp_(min=0) // self._block_tokens
            ids = table.gather(1, last[:, None])[:, 0]
        return torch.div(ids, self._positions, rounding_mode="floor", out=out)


def rows_only(cache: Tensor) -> None:
    """Refuse a layer's cache that is vLLM's own: with that, another worker keeps it."""
    if cache.dim() != 5:
        raise UnsupportedError(
            "--attention-backend CUSTOM of pyvattn needs rows: add --worker-cls pyvattn.vllm.Worker"
        )
