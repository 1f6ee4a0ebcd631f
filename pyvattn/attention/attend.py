# SPDX-License-Identifier: Apache-2.0
"""The one call that attends queries to the cache."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyvattn.arguments import check_flag, is_number
from pyvattn.attention.problem import Indices, Problem, check_cache
from pyvattn.attention.registry import choose
from pyvattn.errors import ConfigError, UnsupportedError
from pyvattn.text import shown

if TYPE_CHECKING:
    from pyvattn.cache import KVCache
    from pyvattn.rows import RowMap


def attend(
    q: Tensor,
    cache: KVCache | RowMap,
    layer: int,
    slots: Indices,
    lengths: Indices,
    causal: bool = True,
    scale: float | None = None,
    kernel: str = "auto",
) -> Tensor:
    """Attend the queries of a batch of slots to one layer of the cache.

    ``q`` is ``[batch, queries, q_heads, head_dim]``; the result has its shape.
    ``cache`` is a :class:`pyvattn.KVCache`, or a :class:`pyvattn.RowMap` and its rows.
    Row ``i`` attends to the first ``lengths[i]`` tokens of ``slots[i]``, which
    include the queries' own tokens (see :func:`pyvattn.attention.append`). One
    query a row is a decode step, many are a prefill; queries are right-aligned,
    so in a mixed batch a row with fewer of them is padded on the left, and what
    stands before a row's first token comes out as zero. With ``causal=False``
    every query attends to all tokens of its row, as in FlashAttention.

    ``scale`` defaults to ``head_dim ** -0.5``. ``kernel="auto"`` takes the
    fastest one that can do the problem.

    Raises :class:`~pyvattn.errors.ArgumentError` for what is no cache,
    :class:`~pyvattn.errors.TensorError` for shapes that do not fit,
    :class:`~pyvattn.errors.ConfigError` for an unknown kernel or a
    scale that is no number, and
    :class:`~pyvattn.errors.UnsupportedError` for one that cannot do it, be it for
    the cache's ``guard_tokens``.
    """
    check_cache(cache)
    check_flag("causal", causal)
    if cache.spec.kind != "kv":
        raise UnsupportedError(
            f"attend() needs K and V heads; this cache has kind={cache.spec.kind!r}: "
            "read its latent tensor with cache.layer() and a kernel made for it"
        )
    k, v = cache.layer(layer)
    scale = k.shape[-1] ** -0.5 if scale is None else scale
    if not is_number(scale):
        raise ConfigError(f"scale {shown(scale)}: use a number, or None for head_dim ** -0.5")
    problem = Problem(q, k, v, slots, lengths, causal, float(scale))
    problem.check()
    chosen = choose(kernel, problem, cache.spec.guard_tokens)
    if q.numel() == 0:
        return torch.empty_like(q)
    # Kernels launch on torch's current device, which may be another one of several.
    with torch.cuda.device(q.device) if q.is_cuda else nullcontext():
        return chosen.attend(problem)
