"""How the next token is chosen from logits, by the library's own warpers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from pyvattn.errors import UnsupportedError

if TYPE_CHECKING:
    from transformers import GenerationConfig

Choose = Callable[[Tensor], Tensor]
"""Logits ``[rows, vocabulary]`` to tokens ``[rows]``, with no value read on the host."""

# What a generation config may set. Everything else changes the tokens in ways that continuous
# batching here does not know, so it is refused by name and not passed over.
_KNOWN = {
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "max_new_tokens",
    "max_length",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "use_cache",
    "transformers_version",
}
# Settings that are off at 1; the others are off at None, False or 0.
_OFF_AT_ONE = {
    "num_beams",
    "num_return_sequences",
    "repetition_penalty",
    "encoder_repetition_penalty",
    "length_penalty",
    "typical_p",
    "guidance_scale",
}


def greedy(logits: Tensor) -> Tensor:
    """Take the most likely token of each row."""
    return logits.argmax(dim=-1)


def choose_by(config: GenerationConfig) -> Choose:
    """Return how ``config`` wants tokens chosen: greedily, or sampled.

    Sampling knows ``temperature``, ``top_k``, ``top_p`` and ``min_p``; it draws from torch's
    generator of the device, so ``torch.manual_seed`` makes it repeatable.

    Raises :class:`~pyvattn.errors.UnsupportedError` for a config that sets anything else.
    """
    changed: dict[str, Any] = config.to_diff_dict()
    unknown = {
        name: value
        for name, value in changed.items()
        if name not in _KNOWN
        and not name.startswith("_")
        and value not in (None, False, 0)
        and not (name in _OFF_AT_ONE and value == 1)
    }
    if unknown:
        raise UnsupportedError(
            f"continuous batching does not know {_listed(unknown)} of the generation config: "
            "leave it out, or use model.generate with a VAttentionCache"
        )
    if not config.do_sample:
        return greedy
    warpers: Any = _warpers(config)

    def sample(logits: Tensor) -> Tensor:
        # The warpers read no token ids; their type wants a tensor.
        scores: Tensor = warpers(torch.empty(0, dtype=torch.long), logits.float())
        weights = scores.softmax(dim=-1)
        # Dividing by exponential noise samples as multinomial() does, without its wait.
        return (weights / torch.empty_like(weights).exponential_()).argmax(dim=-1)

    return sample


def _warpers(config: GenerationConfig) -> LogitsProcessorList:
    warpers = LogitsProcessorList()
    if config.temperature not in (None, 1.0):
        warpers.append(TemperatureLogitsWarper(config.temperature))
    if config.top_k:
        warpers.append(TopKLogitsWarper(config.top_k))
    if config.top_p is not None and config.top_p < 1.0:
        warpers.append(TopPLogitsWarper(config.top_p))
    if config.min_p is not None:
        warpers.append(MinPLogitsWarper(config.min_p))
    return warpers


def _listed(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in sorted(settings.items()))
