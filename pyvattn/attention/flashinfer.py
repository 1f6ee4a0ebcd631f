"""FlashInfer's non-paged kernels: single_prefill_with_kv_cache, single_decode_with_kv_cache.

A row's K and V are a view of its slot. The decode kernel takes packed tokens only,
so where tokens lie apart (layout ``token``) the prefill kernel, which reads strides,
does decode as well.
"""

from __future__ import annotations

from torch import Tensor

from pyvattn.attention import optional
from pyvattn.attention.problem import Kernel, Problem, by_row

_MODULE = "flashinfer"
_HEAD_DIMS = (64, 128, 256)
_LEAST = (8, 0)


class FlashInferKernel(Kernel):
    """FlashInfer, one call for each row."""

    name = "flashinfer"
    supports = "float16 and bfloat16, head dims 64, 128 and 256"
    guard_tokens = 0  # of its kernels for any GPU (decode) and for Hopper (prefill)

    def unavailable(self) -> str | None:
        """See :meth:`Kernel.unavailable`."""
        return optional.why_not_importable(
            _MODULE, "pip install flashinfer-python"
        ) or optional.why_no_device(_LEAST)

    def unsupported(self, problem: Problem) -> str | None:
        """See :meth:`Kernel.unsupported`."""
        return optional.why_not_flash(problem, _HEAD_DIMS, _LEAST)

    def attend(self, problem: Problem) -> Tensor:
        """See :meth:`Kernel.attend`."""
        return by_row(problem, lambda q, k, v: self._attend(problem, q, k, v))

    def _attend(self, problem: Problem, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        library = optional.load(_MODULE)
        if q.shape[0] == 1 and k.is_contiguous() and v.is_contiguous():
            out: Tensor = library.single_decode_with_kv_cache(
                q[0],
                k,
                v,
                kv_layout="NHD",
                use_tensor_cores=q.shape[1] > k.shape[1],
                sm_scale=problem.scale,
            )
            return out[None]
        out = library.single_prefill_with_kv_cache(
            q, k, v, causal=problem.causal, kv_layout="NHD", sm_scale=problem.scale
        )
        return out
