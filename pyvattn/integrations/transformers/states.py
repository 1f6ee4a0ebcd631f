# SPDX-License-Identifier: Apache-2.0
"""Layers with a state (Mamba, linear attention, convolutions) beside those in the cache.

Their states are the library's own tensors, a row for each sequence of the batch. They are not in
the KVCache, nor counted in its memory, and they cannot go back: what they saw stays seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from transformers.cache_utils import DYNAMIC_LAYER_TYPE_MAPPING, CacheLayerMixin

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

#: Kinds of layers without K and V: with a state, or with nothing that a cache would hold, which
#: newer releases of the library call "dummy".
STATES = frozenset({"linear_attention", "conv", "moe", "mlp", "dummy"})
#: Kinds of layers that keep K, V and a state.
HYBRIDS = frozenset({"hybrid", "hybrid_sliding"})


class StateLayers:
    """The library's layers for the states of a model, by their numbers in it."""

    def __init__(self, config: PreTrainedConfig | None, kinds: Sequence[str]) -> None:
        self._states = getattr(config, "number_of_conv_states", 1)
        # Those of layers that keep K and V as well are in the cache's own layers.
        self._kinds = {
            i: "linear_attention" if kind in HYBRIDS else kind
            for i, kind in enumerate(kinds)
            if kind in STATES | HYBRIDS
        }
        self.hybrids = frozenset(i for i, kind in enumerate(kinds) if kind in HYBRIDS)
        self.layers: dict[int, CacheLayerMixin] = {}
        self.forget()

    def forget(self) -> None:
        """Start over, for a batch of any size."""
        self.layers = {
            i: DYNAMIC_LAYER_TYPE_MAPPING[kind](number_of_states=self._states)
            for i, kind in self._kinds.items()
        }

    def select(self, rows: Sequence[int]) -> None:
        """Make row ``i`` what row ``rows[i]`` was."""
        chosen = torch.tensor(rows, dtype=torch.long, device="cpu")
        for layer in self.layers.values():
            layer.reorder_cache(cast(torch.LongTensor, chosen))
