# SPDX-License-Identifier: Apache-2.0
"""What the library itself generates with its own cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from pyvattn.demo.model import Chat


def reference_tokens(
    chat: Chat,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    batch: int,
    progress: Callable[[int], None],
) -> list[list[int]]:
    """Return each prompt's greedy tokens from ``model.generate`` with a DynamicCache.

    ``limits`` are the most new tokens of each. Prompts of similar length go
    together, ``batch`` at a time; ``progress`` gets the number that each batch
    completes.
    """
    chat.model.set_attn_implementation("sdpa")
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    results: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        longest = max(limits[index] for index in chosen)
        answers = _generate(chat, [prompts[index] for index in chosen], longest)
        for index, answer in zip(chosen, answers, strict=True):
            results[index] = answer[: limits[index]]
        progress(len(chosen))
    return results


def _generate(chat: Chat, prompts: list[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
    from transformers import DynamicCache

    longest = max(len(prompt) for prompt in prompts)
    padded = [[chat.pad_token] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    sequences = chat.model.generate(
        input_ids=torch.tensor(padded),
        attention_mask=torch.tensor(mask),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        past_key_values=DynamicCache(config=chat.model.config),
    )
    return [_until_stop(row.tolist(), chat.stop_tokens) for row in sequences[:, longest:]]


def _until_stop(tokens: list[int], stop_tokens: frozenset[int]) -> list[int]:
    """Cut what the library pads a finished row with."""
    end = next((i + 1 for i, token in enumerate(tokens) if token in stop_tokens), len(tokens))
    return tokens[:end]
