"""FlashAttention-4, `flash_attn.cute`, through flash_attn_varlen_func.

It takes no index of batch rows, so rows whose slots follow each other go in
together, as one view of the cache with ``seqused_k`` for the lengths.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyvattn.attention import optional
from pyvattn.attention.problem import Kernel, Problem
from pyvattn.attention.rows import blank_padding, consecutive

_MODULE = "flash_attn.cute"
_LEAST = (9, 0)
_HEAD_DIMS = (64, 96, 128)
_HOPPER_HEAD_DIMS = (64, 96, 128, 192, 256)


class FlashAttention4Kernel(Kernel):
    """FlashAttention-4: Hopper and Blackwell, compiled at the first call of each shape."""

    name = "flash-attn-4"
    supports = "float16 and bfloat16, head dims 64, 96 and 128, on Hopper 192 and 256 as well"

    def unavailable(self) -> str | None:
        """See :meth:`Kernel.unavailable`."""
        return optional.why_not_importable(
            _MODULE, "pip install flash-attn-4"
        ) or optional.why_no_device(_LEAST)

    def unsupported(self, problem: Problem) -> str | None:
        """See :meth:`Kernel.unsupported`."""
        hopper = problem.q.is_cuda and torch.cuda.get_device_capability(problem.q.device)[0] == 9
        head_dims = _HOPPER_HEAD_DIMS if hopper else _HEAD_DIMS
        return optional.why_not_flash(problem, head_dims, _LEAST)

    def attend(self, problem: Problem) -> Tensor:
        """See :meth:`Kernel.attend`."""
        out = torch.empty_like(problem.q)
        slots = problem.host_slots
        for first, end in consecutive(slots):
            rows, cached = slice(first, end), slice(slots[first], slots[first] + end - first)
            out[rows] = self._attend(problem, rows, cached)
        return blank_padding(out, problem)

    def _attend(self, problem: Problem, rows: slice, cached: slice) -> Tensor:
        result = optional.load(_MODULE).flash_attn_varlen_func(
            problem.q[rows],
            problem.k[cached],
            problem.v[cached],
            seqused_k=problem.device_lengths[rows],
            softmax_scale=problem.scale,
            causal=problem.causal,
        )
        out: Tensor = result[0] if isinstance(result, tuple) else result
        return out
