# SPDX-License-Identifier: Apache-2.0
"""A mask that no paged kernel has, for vLLM's own FlexAttention and for ours over rows.

Every block of keys has some that a query attends to, so neither may leave one out.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pyvattn.attention import FlexKernel

__all__ = ["KERNEL", "give_to_layers"]

_NEAR = 1024
_EVERY = 4


def strided(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """Attend to the last 1,024 tokens and to every fourth of those before."""
    return (query - key < _NEAR) | (key % _EVERY == 0)


def causal_strided(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """Attend so to no token that is yet to come: vLLM leaves that to its masks."""
    return (query >= key) & strided(batch, head, query, key)


KERNEL = FlexKernel("bench-strided", mask_mod=strided)


def give_to_layers(model: Any) -> None:
    """Have each layer that attends do so with the mask, where vLLM's backend is FLEX_ATTENTION."""
    from vllm.model_executor.layers.attention import Attention

    for layer in model.modules():
        if isinstance(layer, Attention):
            layer.logical_mask_mod = causal_strided
