"""Whether the decode step can be captured in a CUDA graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pyvattn.attention.problem import Kernel, Problem
from pyvattn.attention.registry import choose
from pyvattn.errors import UnsupportedError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pyvattn.cache import KVCache


def wants_graphs(model: PreTrainedModel, cache: KVCache, asked: bool | None) -> bool:
    """Return whether to capture: ``asked``, or for ``None`` whether it is possible.

    Raises :class:`~pyvattn.errors.UnsupportedError` where it is asked for and not possible.
    """
    if asked is False:
        return False
    reason = why_no_graphs(model, cache)
    if asked and reason is not None:
        raise UnsupportedError(f"graphs=True: {reason}; use graphs=False or None")
    return reason is None


def why_no_graphs(model: PreTrainedModel, cache: KVCache) -> str | None:
    """Say why a decode step over ``cache`` cannot be captured, or return ``None``."""
    if model.device.type != "cuda":
        return f"CUDA graphs need a CUDA device, the model is on {model.device}"
    if cache.spec.max_slots < 2:
        return "one slot fills up captured batches, and the cache has only one: max_slots=2"
    kernel = decode_kernel(model, cache)
    if not kernel.capturable:
        return (
            f"attention kernel {kernel.name} reads lengths on the host; the others take float16 "
            "and bfloat16: load the model in one of these"
        )
    return None


def decode_kernel(model: PreTrainedModel, cache: KVCache) -> Kernel:
    """Return the attention kernel that a decode step of ``model`` over ``cache`` takes."""
    k, v = cache.layer(0)
    heads = model.config.get_text_config(decoder=True).num_attention_heads
    q = torch.empty(1, 1, heads, k.shape[-1], dtype=k.dtype, device=k.device)
    row = torch.ones(1, dtype=torch.int32, device=k.device)
    problem = Problem(q, k, v, row, row, True, 1.0)
    return choose("auto", problem, cache.spec.guard_tokens)
