# SPDX-License-Identifier: Apache-2.0
"""torch's attention held to one of its backends, to compare them.

``kernel="sdpa"`` lets torch choose; these refuse to run anything else than what they
are named for.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from pyvattn.attention.features import Feature
from pyvattn.attention.optional import ListedKernel
from pyvattn.attention.problem import TORCH_DTYPES, Problem
from pyvattn.attention.rows import by_row
from pyvattn.errors import UnsupportedError
from pyvattn.kernels import KnownKernel, kernel_named

_BACKENDS = {
    "sdpa-cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa-flash": SDPBackend.FLASH_ATTENTION,
    "sdpa-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "sdpa-math": SDPBackend.MATH,
}
_CPU = (SDPBackend.MATH, SDPBackend.FLASH_ATTENTION)
_HALF = (torch.float16, torch.bfloat16)


class SdpaBackendKernel(ListedKernel):
    """scaled_dot_product_attention with one backend, one call for each row."""

    features = frozenset((Feature.STARTS, Feature.PACKED, Feature.QUANTISED))

    def __init__(self, known: KnownKernel, backend: SDPBackend) -> None:
        self.known = known
        super().__init__()
        self._backend = backend

    def unsupported(self, problem: Problem) -> str | None:
        """Say what of a batch the backend does not take."""
        on_cuda = problem.q.device.type == "cuda"
        if not on_cuda and self._backend not in _CPU:
            return f"runs on CUDA devices, q is on {problem.q.device}"
        flash = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION)
        takes = _HALF if on_cuda and self._backend in flash else TORCH_DTYPES
        if problem.q.dtype not in takes:
            names = ", ".join(str(dtype).removeprefix("torch.") for dtype in takes)
            return f"takes {names}, q is {problem.q.dtype}"
        if self._backend == SDPBackend.CUDNN_ATTENTION and _has_row_of_one(problem):
            return "cuDNN takes no row of one token"
        return None

    def attend(self, problem: Problem) -> Tensor:
        """Attend to one row after the other; what torch itself refuses is an error that says so."""
        try:
            return by_row(problem, lambda row: self._attend(problem, row.q, row.k, row.v))
        except RuntimeError as error:
            # torch alone knows what else a backend refuses, and says only that.
            if "No available kernel" not in str(error):
                raise
            raise UnsupportedError(
                f"kernel {self.name!r}: torch's backend does not take {problem.q.shape[-2]} query "
                f"and {problem.k.shape[2]} KV heads of {problem.q.shape[-1]} in {problem.q.dtype} "
                f"on {problem.q.device}; use kernel='auto'"
            ) from error

    def _attend(self, problem: Problem, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        queries, tokens = q.shape[0], k.shape[0]
        square = queries == tokens
        mask = None
        if problem.causal and not square and queries > 1:
            mask = causal_lower_right(queries, tokens)
        grouped = q.shape[1] != k.shape[1]
        # The efficient backend knows no groups. It takes strides of zero, so that each KV
        # head can stand as a batch row whose query heads all see the same memory.
        apart = grouped and self._backend == SDPBackend.EFFICIENT_ATTENTION
        shape = _by_kv_head if apart else _as_batch
        with sdpa_kernel(self._backend):
            out = scaled_dot_product_attention(
                shape(q, k.shape[1]),
                shape(k, k.shape[1], q.shape[1]),
                shape(v, k.shape[1], q.shape[1]),
                attn_mask=mask,
                is_causal=problem.causal and square,
                scale=problem.scale,
                enable_gqa=grouped and not apart,
            )
        return out.reshape(q.shape[1], queries, -1).transpose(0, 1)


def _has_row_of_one(problem: Problem) -> bool:
    rows = zip(problem.host_starts, problem.host_lengths, strict=True)
    return any(length - start == 1 for start, length in rows)


def _as_batch(tensor: Tensor, kv_heads: int, q_heads: int = 0) -> Tensor:
    """Return ``[1, heads, tokens, dim]`` of ``[tokens, heads, dim]``."""
    return tensor.transpose(0, 1)[None]


def _by_kv_head(tensor: Tensor, kv_heads: int, q_heads: int = 0) -> Tensor:
    """Return ``[kv_heads, heads of the group, tokens, dim]``; for K and V nothing is copied."""
    heads = tensor.transpose(0, 1)
    if q_heads:
        return heads[:, None].expand(-1, q_heads // kv_heads, -1, -1)
    grouped: Tensor = heads.unflatten(0, (kv_heads, -1))
    return grouped


def sdpa_backends() -> list[SdpaBackendKernel]:
    """Return a kernel for each backend that torch has."""
    return [SdpaBackendKernel(kernel_named(name), backend) for name, backend in _BACKENDS.items()]
