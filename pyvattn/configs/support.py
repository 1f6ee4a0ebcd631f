# SPDX-License-Identifier: Apache-2.0
"""Says what the transformers integration does with a model, as far as its config tells."""

from __future__ import annotations

from collections.abc import Sequence

from pyvattn.configs.layers import CROSS, KEEPS_STATE, Kinds
from pyvattn.configs.shapes import Shape

_NAME = "The transformers integration"


def support(kinds: Kinds, shapes: Sequence[Shape | None]) -> str:
    """Return a sentence: that it runs such layers, and how, or which ones it refuses."""
    if count := kinds.count(CROSS):
        return f"{_NAME} refuses this model for its {count} layers with attention to images."
    if states := sum(kind in KEEPS_STATE for kind in kinds):
        return (
            f"{_NAME} holds these layers; the {states} with a state share no prefixes and take no "
            "CUDA graphs."
        )
    kept = [shape for shape in shapes if shape is not None]
    if any(shape.latent_dim for shape in kept):
        return (
            f"{_NAME} holds these latent vectors; the model expands them in every step, without "
            "CUDA graphs."
        )
    if any(shape.v_head_dim != shape.head_dim for shape in kept):
        return f"{_NAME} holds these layers; V of another width takes torch's attention."
    return f"{_NAME} holds these layers."
