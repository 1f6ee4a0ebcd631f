# SPDX-License-Identifier: Apache-2.0
"""What paged allocation holds where layers differ, by the arithmetic of vLLM 0.33.

Every group of layers draws blocks from one pool, and a block's id is a page in each of the
group's layers: so all groups have equally many layers, the last one of a kind padded, and
pages of one size. Smaller ones get more tokens a block, or are padded. A window's blocks go
back as soon as they lie before it. (vllm/v1/core/kv_cache_planning.py and
single_type_kv_cache_manager.py.)
"""

from __future__ import annotations

from dataclasses import dataclass

from pyvattn.samples import BLOCK_TOKENS, blocks_for
from pyvattn.spec import CacheSpec

# Kinds of layers whose numbers are closer than this make groups of the larger number.
_ALIKE = 1.5


@dataclass(frozen=True)
class BlockGroups:
    """Groups of one kind of layers: how many, the tokens of a block, and those of a window."""

    groups: int
    block_tokens: int
    window: int | None

    def blocks(self, tokens: int) -> int:
        """Return the blocks under a request's ``tokens`` tokens."""
        gone = 0 if self.window is None else max(0, tokens - self.window)
        return self.groups * (blocks_for(tokens, self.block_tokens) - gone // self.block_tokens)


@dataclass(frozen=True)
class BlockLayout:
    """The kinds of layers of a model, and the bytes of a block in the pool they share."""

    kinds: tuple[BlockGroups, ...]
    block_bytes: int

    @classmethod
    def of(cls, spec: CacheSpec) -> BlockLayout:
        """Divide the layers of ``spec`` as vLLM does."""
        sizes = [part.token_bytes_per_layer for part in spec.parts]
        counts = [part.layers for part in spec.parts]
        largest = max(sizes)
        layers = max(counts) if max(counts) < _ALIKE * min(counts) else min(counts)
        kinds = (
            BlockGroups(
                blocks_for(count, layers),
                BLOCK_TOKENS * (largest // size if largest % size == 0 else 1),
                window,
            )
            for count, size, window in zip(counts, sizes, spec.windows, strict=True)
        )
        return cls(tuple(kinds), layers * largest * BLOCK_TOKENS)

    def bytes_at(self, tokens: int) -> int:
        """Return the bytes of the blocks that a request of ``tokens`` tokens holds."""
        return self.block_bytes * sum(kind.blocks(tokens) for kind in self.kinds)
