# SPDX-License-Identifier: Apache-2.0
"""The KV memory of a worker, in which each block is also at the place of vLLM's id."""

from __future__ import annotations

from typing import Any

from pyvattn.integrations.vllm.homes import Homes
from pyvattn.integrations.vllm.memory import NULL_BLOCK, RowMemory

__all__ = ["HomeRowMemory"]


class HomeRowMemory(RowMemory):
    """The first virtual blocks are vLLM's own: what indexes KV by block id finds what it wants.

    The rows that come first map each block once, in the order of ids, for good. So a tensor of
    virtual blocks, as kernels get it, is one of vLLM's blocks as well, from the beginning of its
    memory on. Nothing there depends on which request has a block, or whether one does.

    Virtual block 0 is the null block still, and row 0 is no request's.
    """

    def by_block(self, tensors: dict[str, Any]) -> dict[str, Any]:
        """Return what layers have of virtual blocks as ``[blocks, ...]``, by vLLM's block ids."""
        return {name: tensor[: self.sizes.blocks] for name, tensor in tensors.items()}

    def stats(self) -> dict[str, int | float]:
        """Count also what the second mapping of each block took, which is done at the start."""
        return {**super().stats(), **self._home_stats}

    def _rows_of_blocks(self) -> int:
        # Row 0 is one of those that vLLM asks for.
        return Homes.rows_for(self.sizes.blocks, self.positions) - 1

    def _open_null_row(self) -> None:
        """Map each block at its id. Kernels may read row 0 to its end: the null block is there."""
        before = self.pool.stats()
        Homes(self.rows, self._blocks, first=0, behind=self._blocks[NULL_BLOCK])
        after = self.pool.stats()
        self._home_stats = {
            "home_map_calls": after.map_calls - before.map_calls,
            "home_driver_seconds": after.map_seconds - before.map_seconds,
        }

    def _touch_blocks(self) -> None:
        """Nothing: each is mapped once."""
