# SPDX-License-Identifier: Apache-2.0
"""One Triton kernel that stores new tokens where they belong, quantised where there are scales."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyvattn.attention.kv_scales import LayerScales

_ELEMENTS = {
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float8_e4m3fn: tl.float8e4nv,
    torch.float8_e5m2: tl.float8e5,
}
# What a thread stores at once, in bytes.
_ALIGNMENT = 16


def append_fused(
    slots: Tensor,
    positions: Tensor,
    new: tuple[Tensor, Tensor],
    cached: tuple[Tensor, Tensor],
    scales: LayerScales | None,
) -> None:
    """Store K and V of ``new``, ``[..., kv_heads, head_dim]``, as ``append`` does.

    With ``scales`` they are quantised, without they have the dtype of ``cached``. One launch,
    which reads no value on the host. A place outside the tensors of ``cached``,
    ``[slots, tokens, kv_heads, head_dim]``, is passed over.
    """
    k, v = (_as_rectangle(each) for each in new)
    outer, inner, heads, dim = k.shape
    if not k.numel():
        return
    slots, positions = (
        each.broadcast_to(new[0].shape[:-2]).reshape(outer, inner) for each in (slots, positions)
    )
    _append[(outer * inner,)](
        slots,
        positions,
        k,
        v,
        # As numbers: of a tensor Triton asks the driver where its first element lies, and refuses
        # one whose first row has no memory.
        *(each.data_ptr() for each in cached),
        *(scales or (None, None)),
        *slots.stride(),
        *positions.stride(),
        *k.stride(),
        *v.stride(),
        *cached[0].stride()[:3],
        *cached[1].stride()[:3],
        *cached[0].shape[:2],
        inner,
        ELEMENT=_ELEMENTS[cached[0].dtype],
        ALIGNED=not any(each.data_ptr() % _ALIGNMENT for each in cached),
        MOST=None if scales is None else torch.finfo(cached[0].dtype).max,
        HEADS=heads,
        ROWS=triton.next_power_of_2(heads),
        K_DIM=dim,
        K_COLUMNS=triton.next_power_of_2(dim),
        V_DIM=v.shape[-1],
        V_COLUMNS=triton.next_power_of_2(v.shape[-1]),
    )


def _as_rectangle(new: Tensor) -> Tensor:
    """View ``[..., heads, dim]`` as ``[outer, inner, heads, dim]``; more dims may be copied."""
    if new.dim() == 4:
        return new
    return new[None] if new.dim() == 3 else new.reshape(1, -1, *new.shape[-2:])


@triton.jit  # type: ignore[untyped-decorator]
def _append(  # type: ignore[no-untyped-def]
    slots,
    positions,
    k,
    v,
    k_cache,
    v_cache,
    k_scale,
    v_scale,
    slots_outer,
    slots_inner,
    positions_outer,
    positions_inner,
    k_outer,
    k_inner,
    k_head,
    k_dim,
    v_outer,
    v_inner,
    v_head,
    v_dim,
    k_slot,
    k_token,
    k_cached_head,
    v_slot,
    v_token,
    v_cached_head,
    slot_count,
    token_count,
    inner,
    ELEMENT: tl.constexpr,
    ALIGNED: tl.constexpr,
    MOST: tl.constexpr,
    HEADS: tl.constexpr,
    ROWS: tl.constexpr,
    K_DIM: tl.constexpr,
    K_COLUMNS: tl.constexpr,
    V_DIM: tl.constexpr,
    V_COLUMNS: tl.constexpr,
):
    k_cache = k_cache.to(tl.pointer_type(ELEMENT))
    v_cache = v_cache.to(tl.pointer_type(ELEMENT))
    if ALIGNED:
        k_cache, v_cache = tl.multiple_of(k_cache, 16), tl.multiple_of(v_cache, 16)
    number = tl.program_id(0)
    a = (number // inner).to(tl.int64)
    b = (number % inner).to(tl.int64)
    slot = tl.load(slots + a * slots_outer + b * slots_inner).to(tl.int64)
    token = tl.load(positions + a * positions_outer + b * positions_inner).to(tl.int64)
    # As torch counts: from the end where negative.
    slot = tl.where(slot < 0, slot + slot_count, slot)
    token = tl.where(token < 0, token + token_count, token)
    if (slot >= 0) & (slot < slot_count) & (token >= 0) & (token < token_count):
        head = tl.arange(0, ROWS)[:, None]
        is_head = head < HEADS
        dim = tl.arange(0, K_COLUMNS)[None, :]
        _store(
            k + a * k_outer + b * k_inner + head * k_head + dim * k_dim,
            k_cache + slot * k_slot + token * k_token + head * k_cached_head + dim,
            k_scale,
            head,
            is_head,
            is_head & (dim < K_DIM),
            MOST,
        )
        dim = tl.arange(0, V_COLUMNS)[None, :]
        _store(
            v + a * v_outer + b * v_inner + head * v_head + dim * v_dim,
            v_cache + slot * v_slot + token * v_token + head * v_cached_head + dim,
            v_scale,
            head,
            is_head,
            is_head & (dim < V_DIM),
            MOST,
        )


@triton.jit  # type: ignore[untyped-decorator]
def _store(source, target, scales, head, is_head, mask, MOST: tl.constexpr):  # type: ignore[no-untyped-def]
    value = tl.load(source, mask=mask)
    if MOST is not None:
        value = value.to(tl.float32)
        # Rounded as torch divides; Triton's own division is approximate.
        scale = tl.load(scales + head, mask=is_head, other=1.0)
        value = tl.div_rn(value, scale + tl.zeros_like(value))
        value = tl.clamp(value, -MOST, MOST, propagate_nan=tl.PropagateNan.ALL)
        value = value.to(target.dtype.element_ty)
    tl.store(target, value, mask=mask)
