# SPDX-License-Identifier: Apache-2.0
"""How ``--attention-backend CUSTOM`` has a layer's blocks: what its two backends share."""

from __future__ import annotations

from torch import Tensor

from pyvattn.errors import UnsupportedError

__all__ = ["RowLayout", "rows_only"]


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


def rows_only(cache: Tensor) -> None:
    """Refuse a layer's cache that is vLLM's own: with that, another worker keeps it."""
    if cache.dim() != 5:
        raise UnsupportedError(
            "--attention-backend CUSTOM of pyvattn needs rows: add --worker-cls pyvattn.vllm.Worker"
        )
