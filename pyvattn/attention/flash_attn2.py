"""FlashAttention-2, the `flash-attn` package, through flash_attn_with_kvcache.

The cache goes in whole: ``cache_batch_idx`` names the slot of each row and
``cache_seqlens`` its length. Both stay on the device, so a call can be captured
in a CUDA graph.
"""

from __future__ import annotations

from torch import Tensor

from pyvattn.attention import optional
from pyvattn.attention.problem import Kernel, Problem

# FlashAttention-4 by itself makes a package `flash_attn` as well, without this module.
_MODULE = "flash_attn.flash_attn_interface"
_HEAD_DIMS = tuple(range(8, 257, 8))
_LEAST = (8, 0)


class FlashAttention2Kernel(Kernel):
    """FlashAttention-2: Ampere and later, decode with split KV."""

    name = "flash-attn-2"
    supports = "float16 and bfloat16, head dims to 256, CUDA graphs"
    guard_tokens = 0
    capturable = True

    def unavailable(self) -> str | None:
        """See :meth:`Kernel.unavailable`."""
        return optional.why_not_importable(
            _MODULE, "pip install flash-attn"
        ) or optional.why_no_device(_LEAST)

    def unsupported(self, problem: Problem) -> str | None:
        """See :meth:`Kernel.unsupported`."""
        return optional.why_not_flash(problem, _HEAD_DIMS, _LEAST)

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
