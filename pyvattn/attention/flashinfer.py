# SPDX-License-Identifier: Apache-2.0
"""FlashInfer's non-paged kernels: single_prefill_with_kv_cache, single_decode_with_kv_cache.

A row's K and V are a view of its slot. The decode kernel takes packed tokens only,
so where tokens lie apart (layout ``token``) the prefill kernel, which reads strides,
does decode as well.
"""

from __future__ import annotations

from torch import Tensor

from pyvattn.attention.features import Feature
from pyvattn.attention.optional import ListedKernel, why_not_flash
from pyvattn.attention.problem import Problem
from pyvattn.attention.rows import by_row
from pyvattn.kernels import kernel_named

_HEAD_DIMS = (64, 128, 256)


class FlashInferKernel(ListedKernel):
    """FlashInfer, one call for each row."""

    known = kernel_named("flashinfer")
    features = frozenset((Feature.STARTS, Feature.PACKED))

    def unsupported(self, problem: Problem) -> str | None:
        """Say what FlashInfer does not take."""
        return why_not_flash(self.known, problem, _HEAD_DIMS)

    def attend(self, problem: Problem) -> Tensor:
        """Attend to one row after the other."""
        return by_row(problem, lambda row: self._attend(problem, row.q, row.k, row.v))

    def _attend(self, problem: Problem, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        library = self.module()
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
