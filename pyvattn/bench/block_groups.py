# SPDX-License-Identifier: Apache-2.0
"""What paged allocation holds where layers differ, by the arithmetic of vLLM 0.33.

Every group of layers draws blocks from one pool, and a block's id is a page in each of the
group's layers: so all groups have equally many layers, the last one of a kind padded, and
pages of one size. Smaller ones get more tokens a block, or are padded. A window's blocks go
back as soon as they lie before it. A state takes a block, so blocks have as many tokens as are
no smaller than a state, and the state is padded to that. (vllm/v1/core/kv_cache_planning.py and
single_type_kv_cache_manager.py.)
"""

from __future__ import annotations

from dataclasses import dataclass

from pyvattn.errors import SpecError
from pyvattn.samples import BLOCK_TOKENS, blocks_for
from pyvattn.spec import CacheSpec

# Kinds of layers whose numbers are closer than this make groups of the larger number.
_ALIKE = 1.5


@dataclass(frozen=True)
class BlockGroups:
    """Groups of one kind of layers: how many, the tokens of a block, and those of a window.

    Where layers keep ``states``, each is a block whatever the tokens.
    """

    groups: int
    block_tokens: int
    window: int | None
    states: int = 0

    def blocks(self, tokens: int, computed: int | None = None) -> int:
        """Return the blocks under a request's ``tokens`` tokens.

        Those of a chunk are taken while what precedes it is still there: of ``computed`` tokens
        the window of the next.
        """
        if self.states:
            return self.groups * self.states
        gone = 0
        if self.window is not None:
            last = tokens if computed is None else computed + 1
            gone = max(0, last - self.window)
        return self.groups * (blocks_for(tokens, self.block_tokens) - gone // self.block_tokens)


@dataclass(frozen=True)
class BlockLayout:
    """The kinds of layers of a model, and the bytes of a block in the pool they share."""

    kinds: tuple[BlockGroups, ...]
    block_bytes: int

    @classmethod
    def of(cls, spec: CacheSpec, state_tokens: int = BLOCK_TOKENS) -> BlockLayout:
        """Divide the layers of ``spec`` as vLLM does.

        Where there are states, blocks have a multiple of ``state_tokens`` tokens, which the
        kernels of linear attention set.
        """
        sizes = [part.token_bytes_per_layer for part in spec.parts]
        counts = [part.layers for part in spec.parts]
        if spec.states:
            return cls._with_states(spec, sizes, counts, state_tokens)
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

    @classmethod
    def _with_states(
        cls, spec: CacheSpec, sizes: list[int], counts: list[int], unit: int
    ) -> BlockLayout:
        if len(sizes) > 1 or len(spec.states) > 1:
            raise SpecError(
                f"{len(sizes)} groups of layers and {len(spec.states)} of states: the rules that "
                "are written down here are for one of each"
            )
        (size,), (count,), (state,) = sizes, counts, spec.states
        block_tokens = unit * blocks_for(state.layer_bytes, unit * size)
        numbers = (count, len(state.layers))
        layers = max(numbers) if max(numbers) < _ALIKE * min(numbers) else min(numbers)
        full = BlockGroups(blocks_for(count, layers), block_tokens, None)
        states = BlockGroups(blocks_for(numbers[1], layers), block_tokens, None, state.copies)
        return cls((full, states), layers * block_tokens * size)

    def bytes_at(self, tokens: int) -> int:
        """Return the bytes of the blocks that a request of ``tokens`` tokens holds."""
        return self.block_bytes * sum(kind.blocks(tokens) for kind in self.kinds)

    def peak_bytes(self, tokens: int, chunk: int) -> int:
        """Return the most that a prompt of ``tokens`` holds while it is computed in chunks."""
        peaks = (
            sum(kind.blocks(min(first + chunk, tokens), first) for kind in self.kinds)
            for first in range(0, tokens, chunk)
        )
        return self.block_bytes * max(peaks)
