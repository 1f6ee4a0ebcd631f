# SPDX-License-Identifier: Apache-2.0
"""The one call that attends queries to the cache."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Literal, overload

import torch
from torch import Tensor

from pyvattn.arguments import check_flag, check_type, is_number
from pyvattn.attention.indices import Indices, check_indices
from pyvattn.attention.kernel import Kernel
from pyvattn.attention.kv_scales import scales_of
from pyvattn.attention.problem import (
    UNLIMITED,
    Problem,
    check_by_head,
    check_cache,
    check_window,
    page_bytes_of,
)
from pyvattn.attention.registry import choose
from pyvattn.attention.rings import check_spans, in_ring, ring_of
from pyvattn.attention.step import Step
from pyvattn.attention.windows import (
    guard_of,
    keeps_latent,
    narrowed,
    source_of,
    starts_of,
    window_of,
)
from pyvattn.errors import ConfigError, UnsupportedError
from pyvattn.nvtx import ranged
from pyvattn.text import shown

if TYPE_CHECKING:
    from pyvattn.cache import KVCache
    from pyvattn.rows import RowMap


@overload
def attend(
    q: Tensor,
    cache: KVCache | RowMap,
    layer: int,
    slots: Indices,
    lengths: Indices,
    causal: bool = ...,
    scale: float | None = ...,
    kernel: str = ...,
    *,
    window_size: tuple[int, int] = ...,
    softcap: float = ...,
    starts: Indices | None = ...,
    alibi_slopes: Tensor | None = ...,
    sinks: Tensor | None = ...,
    query_counts: Indices | None = ...,
    step: Step | None = ...,
    return_lse: Literal[False] = ...,
) -> Tensor: ...


@overload
def attend(
    q: Tensor,
    cache: KVCache | RowMap,
    layer: int,
    slots: Indices,
    lengths: Indices,
    causal: bool = ...,
    scale: float | None = ...,
    kernel: str = ...,
    *,
    window_size: tuple[int, int] = ...,
    softcap: float = ...,
    starts: Indices | None = ...,
    alibi_slopes: Tensor | None = ...,
    sinks: Tensor | None = ...,
    query_counts: Indices | None = ...,
    step: Step | None = ...,
    return_lse: Literal[True],
) -> tuple[Tensor, Tensor]: ...


@ranged("pyvattn.attend")
def attend(
    q: Tensor,
    cache: KVCache | RowMap,
    layer: int,
    slots: Indices,
    lengths: Indices,
    causal: bool = True,
    scale: float | None = None,
    kernel: str = "auto",
    *,
    window_size: tuple[int, int] = (UNLIMITED, UNLIMITED),
    softcap: float = 0.0,
    starts: Indices | None = None,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    query_counts: Indices | None = None,
    step: Step | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attend the queries of a batch of slots to one layer of the cache.

    ``q`` is ``[batch, queries, q_heads, head_dim]``; the result has its shape, with heads as
    wide as those of V. A layer that reads another's K and V is attended to as that one is.
    ``cache`` is a :class:`pyvattn.KVCache`, or a :class:`pyvattn.RowMap` and its rows.
    Row ``i`` attends to the first ``lengths[i]`` tokens of ``slots[i]``, which
    include the queries' own tokens (see :func:`pyvattn.attention.append`). One
    query a row is a decode step, many are a prefill; queries are right-aligned,
    so in a mixed batch a row with fewer of them is padded on the left, and what
    stands before a row's first token comes out as zero. With ``causal=False``
    every query attends to all tokens of its row, as in FlashAttention.

    A layer that keeps no more than a window (:class:`pyvattn.LayerGroup`) is attended to within
    it, whatever ``window_size`` and ``starts`` say beyond, and nothing before it is read. Both
    ends of ``window_size`` count from the query. Where its rows are rings, a row may have
    ``cache.chunk_tokens`` queries, no more.

    A float8 cache with scales (:func:`pyvattn.attention.set_scales`) takes queries of a wider
    dtype, which is the result's. FlashAttention-3 computes in float8, with queries quantised by
    row and KV head, and ``reference`` does what that means in float64; the kernels that attend
    row by row convert a row to the queries' dtype first. Without scales, elements are the
    values, queries must be float8 as well, and ``reference`` alone attends.

    ``scale`` defaults to ``head_dim ** -0.5``. ``kernel="auto"`` takes the
    fastest one that can do the problem.

    What some models need besides; names and meaning are FlashAttention's:

    - ``window_size``: how many tokens a query sees to its left and to its right, itself
      aside; -1 is no limit. A sliding window of W tokens is ``(W - 1, 0)``.
    - ``softcap``: scores ``s`` become ``softcap * tanh(s / softcap)``; 0 is none.
    - ``starts``: row ``i`` attends to tokens ``starts[i]`` to ``lengths[i] - 1`` only.
      Nothing before them is read.
    - ``alibi_slopes``: float32 ``[q_heads]`` or ``[batch, q_heads]``; the slope times the
      distance between a query and a token is taken off their score.
    - ``sinks``: float32 ``[q_heads]``, a score that takes part in each softmax and has no
      value.
    - ``query_counts``: row ``i`` has so many queries, which lie one row after the other in
      ``q``, ``[total, q_heads, head_dim]``.

    ``step``, a :class:`Step`, is shared by the layers of one forward pass: FlashAttention-3 then
    plans a decode step once.

    With ``return_lse=True`` the result is a pair: the second tensor, float32 ``[batch,
    q_heads, queries]`` or, with ``query_counts``, ``[q_heads, total]``, is the natural
    logarithm of the sum of the exponentials of each query's scores, sinks left out; minus
    infinity where a query sees nothing.

    Raises :class:`~pyvattn.errors.ArgumentError` for what is no cache,
    :class:`~pyvattn.errors.TensorError` for shapes that do not fit,
    :class:`~pyvattn.errors.ConfigError` for an unknown kernel, a window that is none, or a
    scale or softcap that is no number, and
    :class:`~pyvattn.errors.UnsupportedError` for one that cannot do it, be it for
    the cache's ``guard_tokens``.
    """
    check_cache(cache)
    check_flag("causal", causal)
    check_flag("return_lse", return_lse)
    if step is not None:
        check_type("step", step, Step)
    layer = source_of(cache.spec, layer)
    k, v = cache.layer(layer)
    if keeps_latent(cache.spec, layer):
        raise UnsupportedError(
            f"attend() needs K and V heads; layer {layer} of this cache keeps latent vectors: read "
            "them with cache.layer() and a kernel made for them"
        )
    window = window_of(cache.spec, layer)
    if window is not None and isinstance(q, Tensor) and q.dim() in (3, 4):
        check_window(window_size)
        check_indices("lengths", lengths, None)
        counts = q.shape[1] if query_counts is None else query_counts
        starts = starts_of(lengths, counts, window, starts)
        # One query sees what its row's start leaves of it, which more kernels can do.
        if query_counts is not None or counts != 1 or window_size[0] != UNLIMITED:
            window_size = narrowed(window_size, window)
    ring = ring_of(cache, layer)
    if ring and starts is not None:
        check_spans(starts, lengths, ring - guard_of(cache.spec, layer))
        starts, lengths = in_ring(starts, lengths, ring)
    scales = scales_of(cache)
    scale = k.shape[-1] ** -0.5 if scale is None else scale
    for name, value in (("scale", scale), ("softcap", softcap)):
        if not is_number(value):
            raise ConfigError(f"{name} {shown(value)}: use a number, or leave it out")
    problem = Problem(
        q,
        k,
        v,
        slots,
        lengths,
        causal,
        float(scale),
        window_size,
        float(softcap),
        starts,
        alibi_slopes,
        query_counts,
        None if scales is None else scales.of(layer),
        page_bytes_of(cache),
        ring > 0,
        step,
    )
    problem.check()
    if sinks is not None:
        check_by_head("sinks", sinks, q)
    with_lse = return_lse or sinks is not None
    chosen = choose(kernel, problem, guard_of(cache.spec, layer), with_lse)
    # Kernels launch on torch's current device, which may be another one of several.
    with torch.cuda.device(q.device) if q.is_cuda else nullcontext():
        if not with_lse:
            return _attend(chosen, problem)
        out, lse = _attend_with_lse(chosen, problem)
        out = out if sinks is None else _with_sinks(out, lse, sinks)
    return (out, lse) if return_lse else out


def _attend(kernel: Kernel, problem: Problem) -> Tensor:
    if problem.q.numel() == 0:
        return problem.q.new_empty(problem.out_shape)
    return kernel.attend(problem)


def _attend_with_lse(kernel: Kernel, problem: Problem) -> tuple[Tensor, Tensor]:
    if problem.q.numel() == 0:
        out = problem.q.new_empty(problem.out_shape)
        return out, out.new_empty(out.shape[:-1], dtype=torch.float32).transpose(-1, -2)
    return kernel.attend_with_lse(problem)


def _with_sinks(out: Tensor, lse: Tensor, sinks: Tensor) -> Tensor:
    """Scale the result by the share of its softmax that the sinks leave."""
    share = torch.sigmoid(lse - sinks[:, None])
    return out * share.transpose(-1, -2)[..., None].to(out.dtype)
