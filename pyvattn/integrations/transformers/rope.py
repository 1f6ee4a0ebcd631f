# SPDX-License-Identifier: Apache-2.0
"""Rotary embeddings that depend on more than the token's own position.

The library picks their frequencies from the largest position in the forward pass, and keeps
keys that were rotated with others. What a row says then depends on its neighbours in the
batch and on how its prompt was cut into chunks, unless every position stays within the
length that the model was trained with first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pyvattn.errors import UnsupportedError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def check_rope(config: PreTrainedConfig, max_tokens: int) -> None:
    """Raise :class:`~pyvattn.errors.UnsupportedError` where ``max_tokens`` changes the frequencies.

    Rows of at most ``max_tokens`` are safe where that lies within the original length.
    """
    for kind, rope in varying(config):
        original = _original_length(config, rope, kind)
        if original is not None and max_tokens > original:
            raise UnsupportedError(
                f"{config.model_type} has rope_type={kind!r}, whose frequencies change past "
                f"{original} tokens for every row at once, and max_tokens={max_tokens}: open the "
                f"cache with max_tokens={original} at most, or use the library's DynamicCache"
            )


def varying(config: PreTrainedConfig) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield kind and parameters of the embeddings whose frequencies vary with the longest row."""
    for rope in _ropes(getattr(config, "rope_parameters", None)):
        kind = rope.get("rope_type", "default")
        if kind == "longrope" or "dynamic" in kind:
            yield kind, rope


def _ropes(parameters: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the parameters of each kind of layer; most configs have one set for all."""
    if not isinstance(parameters, Mapping):
        return
    nested = [value for value in parameters.values() if isinstance(value, Mapping)]
    yield from nested or [parameters]


def _original_length(config: PreTrainedConfig, rope: Mapping[str, Any], kind: str) -> int | None:
    """Return the most tokens that keep the first frequencies."""
    trained: int | None = getattr(config, "max_position_embeddings", None)
    if kind == "longrope":
        trained = rope.get("original_max_position_embeddings", trained)
    return trained
