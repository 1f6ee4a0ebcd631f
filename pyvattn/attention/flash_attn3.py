"""FlashAttention-3, the `flash_attn_interface` module, through flash_attn_with_kvcache.

The cache goes in whole, as with FlashAttention-2. On Hopper the kernel loads K and
V with TMA, whole tiles at a time: up to 175 tokens past a row's length are read at
head dim 128 and 191 at 64, which the cache's tail guard backs.
"""

from __future__ import annotations

from torch import Tensor

from pyvattn.attention import optional
from pyvattn.attention.problem import Kernel, Problem

_MODULE = "flash_attn_interface"
_HEAD_DIMS = tuple(range(8, 257, 8))
_HOPPER = (9, 0)


class FlashAttention3Kernel(Kernel):
    """FlashAttention-3: written for Hopper."""

    name = "flash-attn-3"
    guard_tokens = 192  # its longest tile
    supports = "float16 and bfloat16, head dims to 256, CUDA graphs"
    capturable = True

    def unavailable(self) -> str | None:
        """See :meth:`Kernel.unavailable`."""
        return optional.why_not_importable(
            _MODULE, "build it from hopper/ of the flash-attention repository"
        ) or optional.why_no_device(_HOPPER, _HOPPER)

    def unsupported(self, problem: Problem) -> str | None:
        """See :meth:`Kernel.unsupported`."""
        return optional.why_not_flash(problem, _HEAD_DIMS, _HOPPER, _HOPPER)

    def attend(self, problem: Problem) -> Tensor:
        """See :meth:`Kernel.attend`."""
        out: Tensor = optional.load(_MODULE).flash_attn_with_kvcache(
            problem.q,
            problem.k,
            problem.v,
            cache_seqlens=problem.device_lengths,
            cache_batch_idx=problem.device_slots,
            softmax_scale=problem.scale,
            causal=problem.causal,
        )
        return out  # the kernel itself writes zeros for queries that see nothing
